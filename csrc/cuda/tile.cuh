// One 1x128 tile, held by kTileLanes neighbouring lanes of a warp: lane j has the elements from 8 j and from
// 64 + 8 j on, eight each, so that neighbouring lanes read and write neighbouring memory and one division
// serves sixteen elements. Codes of a tile: its maximum, its scale, its elements encoded, as formats/scale.h
// says.
//
// All 32 lanes of a warp call tile_scale together; a lane without work brings zeros.
#pragma once
#include "cuda/vector.cuh"
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

// |x| as bits, whose order is that of the numbers; 0 for what is not finite.
__device__ inline uint32_t finite_magnitude_bits(float x) {
    const uint32_t magnitude = float_bits(x) & 0x7fffffffu;
    return magnitude < kFloatInfBits ? magnitude : 0u;
}

// The scale of a tile for codes of `Format` (E4M3 or E5M6).
template <class Format>
__device__ inline Scale tile_scale(const float* values, bool power_of_2) {
    uint32_t amax = 0;
#pragma unroll
    for (int i = 0; i < kLaneElements; ++i) amax = max(amax, finite_magnitude_bits(values[i]));
    return scale_of<Format>(bits_float(largest_of_lanes<kTileLanes>(amax)), power_of_2);
}

// What is not finite becomes NaN.
template <class Format>
__device__ inline auto encode(float x, float multiplier) {
    return is_finite(x) ? Format::encode(x * multiplier) : Format::kNaN;
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
        uint8_t codes[kVectorLength];
#pragma unroll
        for (int i = 0; i < kVectorLength; ++i) codes[i] = encode<E4M3>(values[i], multiplier);
        if (kVector) {
            *reinterpret_cast<uint2*>(to) = make_uint2(word_of(codes), word_of(codes + 4));
        } else {
#pragma unroll
            for (int i = 0; i < kVectorLength; ++i)
                if (i < count) to[i] = codes[i];
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
