// One 1x128 tile, held by kTileLanes neighbouring lanes of a warp: lane j has the elements from 8 j and from
// 64 + 8 j on, eight each, so that neighbouring lanes read and write neighbouring memory and one division
// serves sixteen elements. Codes of a tile: its maximum, its scale, its elements encoded, as formats/scale.h
// says.
//
// All 32 lanes of a warp call tile_scale together; a lane without work brings zeros.
#pragma once
#include "cuda/vector.cuh"
#include "cuda/warp.cuh"
#include "formats/e4m3.h"
#include "formats/e5m6.h"
#include "formats/scale.h"
#include "formats/tiles.h"

namespace dse::cuda {

inline constexpr int kTileLanes = 8;
inline constexpr int kHalfTile = static_cast<int>(kTile) / 2;
inline constexpr int kLaneElements = 2 * kVectorLength;

// The first element of a lane's half (0 or 1), counted from the start of the tile.
__device__ inline int lane_element(int lane, int half) { return half * kHalfTile + lane * kVectorLength; }

// A lane's share of the tile at `tile`, of which `left` elements exist (none if left <= 0), zeros elsewhere.
// kVector: the tile lies on a 16-byte boundary and `left` is a multiple of 8.
template <bool kVector, class T>
__device__ inline void load_tile(const T* tile, int lane, int64_t left, float* values) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int at = lane_element(lane, half);
        float* to = values + half * kVectorLength;
        if (kVector && at < left)
            load_vector(tile + at, to);
        else
            load_some(tile + at, kVector ? 0 : left - at, to);
    }
}

// The largest finite magnitude of `count` numbers, as bits, whose order is that of the numbers. Two
// instructions for each: twice its bits, without the sign, are raised so far that what is not finite wraps to
// below all others.
template <int count>
__device__ inline uint32_t finite_amax_bits(const float* values) {
    constexpr uint32_t kZero = 0u - 2 * kFloatInfBits;
    uint32_t amax = kZero;
#pragma unroll
    for (int i = 0; i < count; ++i) amax = max(amax, 2 * float_bits(values[i]) + kZero);
    return (amax - kZero) / 2;
}

// The scale of a tile for codes of `Format` (E4M3 or E5M6).
template <class Format>
__device__ inline Scale tile_scale(const float* values, bool power_of_2) {
    const uint32_t amax = finite_amax_bits<kLaneElements>(values);
    return scale_of<Format>(bits_float(largest_of_lanes<kTileLanes>(amax)), power_of_2);
}

// What is not finite becomes NaN.
template <class Format>
__device__ inline auto encode(float x, float multiplier) {
    return is_finite(x) ? Format::encode(x * multiplier) : Format::kNaN;
}

// E4M3 codes of four elements, the first in the lowest byte: encode<E4M3> without branches, a third of its
// instructions. |x * multiplier| must be below 464, as the scale rule sees to.
//
// With 2^e the power of two at or below |v|, and at least the smallest normal 2^-6, |v| + 2^(e + 20) has a
// last place of 2^(e - 3): the addition rounds to the code's mantissa, which the sum's low bits then hold,
// its leading 1 included, and a carry into the next binade too. 480, the number that 0x7f would be, makes a
// NaN.
__device__ inline uint32_t encode_four(const float* values, const float* multipliers) {
    uint32_t magnitudes[4], numbers[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const float v = is_finite(values[i]) ? values[i] * multipliers[i] : 480.0f;
        numbers[i] = float_bits(v);
        const float power = fmaxf(bits_float(numbers[i] & kFloatInfBits), 0x1p-6f);
        const float sum = __fmaf_rn(power, 0x1p20f, fabsf(v));
        magnitudes[i] = float_bits(sum) + (float_bits(power) >> 20) - (121u << 3);
    }
    const auto bytes = [](const uint32_t* w, unsigned byte) {
        const unsigned pair = byte | (byte + 4) << 4;
        return __byte_perm(__byte_perm(w[0], w[1], pair), __byte_perm(w[2], w[3], pair), 0x5410);
    };
    return (bytes(magnitudes, 0) & 0x7f7f7f7fu) | (bytes(numbers, 3) & 0x80808080u);
}

__device__ inline uint32_t encode_four(const float* values, float multiplier) {
    const float multipliers[4] = {multiplier, multiplier, multiplier, multiplier};
    return encode_four(values, multipliers);
}

// How codes lie in memory: `kBytes` a tile; a row of n codes takes row_bytes(n).
struct E4M3Codes {
    using Format = E4M3;
    static constexpr int kBytes = static_cast<int>(kTile);
    static constexpr int kAlignment = 8;  // what kVector asks of a tile's address
    static DSE_FN int64_t row_bytes(int64_t n) { return n; }

    // Eight elements at `to`, of which `count` exist.
    template <bool kVector>
    static __device__ void store(const float* values, float multiplier, int64_t count, uint8_t* to) {
        const uint32_t words[2] = {encode_four(values, multiplier), encode_four(values + 4, multiplier)};
        if (kVector) {
            *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
        } else {
#pragma unroll
            for (int i = 0; i < kVectorLength; ++i)
                if (i < count) to[i] = static_cast<uint8_t>(words[i / 4] >> 8 * (i % 4));
        }
    }

    // Eight codes at `from`, of which `count` exist, times the scale in FP32, saturated.
    template <bool kVector>
    static __device__ void load(const uint8_t* from, float scale, int64_t count, float* values) {
        uint32_t words[2] = {0, 0};
        if (kVector) {
            const uint2 both = *reinterpret_cast<const uint2*>(from);
            words[0] = both.x, words[1] = both.y;
        } else {
#pragma unroll
            for (int i = 0; i < kVectorLength; ++i)
                if (i < count) words[i / 4] |= static_cast<uint32_t>(from[i]) << 8 * (i % 4);
        }
#pragma unroll
        for (int i = 0; i < kVectorLength; ++i)
            values[i] = saturated(E4M3::decode(words[i / 4] >> 8 * (i % 4) & 0xffu) * scale, kFloatMax);
    }
};

// Eight codes in three words, those past the row's end 0.
struct E5M6Codes {
    using Format = E5M6;
    static constexpr int kBytes = static_cast<int>(kTile) / 8 * 12;
    static constexpr int kAlignment = 4;
    static DSE_FN int64_t row_bytes(int64_t n) { return e5m6_row_bytes(n); }

    template <bool kVector>
    static __device__ void store(const float* values, float multiplier, int64_t count, uint8_t* to) {
        uint32_t codes[kVectorLength];
#pragma unroll
        for (int i = 0; i < kVectorLength; ++i)
            codes[i] = i < count ? encode<E5M6>(values[i], multiplier) : 0u;
        const uint32_t words[3] = {codes[0] | codes[1] << 12 | codes[2] << 24,
                                   codes[2] >> 8 | codes[3] << 4 | codes[4] << 16 | codes[5] << 28,
                                   codes[5] >> 4 | codes[6] << 8 | codes[7] << 20};
        put<kVector>(words, to);
    }

    template <bool kVector>
    static __device__ void load(const uint8_t* from, float scale, int64_t count, float* values) {
        uint32_t words[3];
        get<kVector>(from, words);
        const uint32_t codes[kVectorLength] = {words[0],      words[0] >> 12, words[0] >> 24 | words[1] << 8,
                                               words[1] >> 4, words[1] >> 16, words[1] >> 28 | words[2] << 4,
                                               words[2] >> 8, words[2] >> 20};
#pragma unroll
        for (int i = 0; i < kVectorLength; ++i)
            values[i] = i < count ? saturated(E5M6::decode(codes[i] & 0xfffu) * scale, kFloatMax) : 0.0f;
    }

  private:
    template <bool kVector>
    static __device__ void put(const uint32_t* words, uint8_t* to) {
#pragma unroll
        for (int i = 0; i < 3; ++i) {
            if (kVector)
                reinterpret_cast<uint32_t*>(to)[i] = words[i];
            else
                for (int b = 0; b < 4; ++b) to[4 * i + b] = static_cast<uint8_t>(words[i] >> 8 * b);
        }
    }
    template <bool kVector>
    static __device__ void get(const uint8_t* from, uint32_t* words) {
#pragma unroll
        for (int i = 0; i < 3; ++i)
            words[i] = kVector ? reinterpret_cast<const uint32_t*>(from)[i] : word_of(from + 4 * i);
    }
};

// A lane's share of a tile's codes, the tile starting at `tile`.
template <class Codes, bool kVector>
__device__ inline void store_tile(const float* values, float multiplier, int lane, int64_t left,
                                  uint8_t* tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int at = lane_element(lane, half);
        if (at < left)
            Codes::template store<kVector>(values + half * kVectorLength, multiplier, left - at,
                                           tile + at * Codes::kBytes / static_cast<int>(kTile));
    }
}

}  // namespace dse::cuda
