// One 1x128 tile, held by kTileLanes neighbouring lanes of a warp, sixteen elements each, so that one
// division serves sixteen. A lane has runs of kRun neighbouring elements, which are one access to memory, and
// the runs of neighbouring lanes are neighbours. Codes of a tile: its maximum, its scale, its elements
// encoded, as formats/scale.h says.
//
// All 32 lanes of a warp call tile_scale together; a lane without work brings zeros.
//
// What is not finite is rare: a maximum finds it, the largest magnitude being none of a number then, and only
// then is each element looked at.
#pragma once
#include "cuda/vector.cuh"
#include "cuda/warp.cuh"
#include "formats/scale.h"
#include "formats/tiles.h"

namespace dse::cuda {

inline constexpr int kTileLanes = 8;
inline constexpr int kLaneElements = static_cast<int>(kTile) / kTileLanes;

// A lane's run `run`, counted from the start of the tile.
template <int kRun>
__device__ inline int lane_element(int lane, int run) {
    return (run * kTileLanes + lane) * kRun;
}

// A lane's share of the tile at `tile`, of which `left` elements exist (none if left <= 0), zeros elsewhere.
// kVector: the tile lies on a 16-byte boundary and `left` is a multiple of 8.
template <bool kVector, int kRun, class T>
__device__ inline void load_tile(const T* tile, int lane, int64_t left, float* values) {
#pragma unroll
    for (int run = 0; run < kLaneElements / kRun; ++run) {
        const int at = lane_element<kRun>(lane, run);
        float* to = values + run * kRun;
        if (kVector && at < left)
            load_vector<kRun>(tile + at, to);
        else
            load_some<kRun>(tile + at, kVector ? 0 : left - at, to);
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

// The largest finite magnitude of numbers, as bits, and whether all of them are finite.
struct Magnitude {
    uint32_t bits;
    bool all_finite;
};

template <int count>
__device__ inline Magnitude magnitude_of(const float* values) {
    float amax = 0.0f;
#pragma unroll
    for (int i = 0; i < count; ++i) amax = larger_magnitude(amax, values[i]);
    Magnitude result{float_bits(amax), true};
    if (result.bits >= kFloatInfBits) result = {finite_amax_bits<count>(values), false};
    return result;
}

// A tile's scale, and whether all elements of this lane are finite.
struct TileScale {
    Scale scale;
    bool all_finite;
};

// The scale of a tile for codes of `Format` (E4M3 or E5M6).
template <class Format>
__device__ inline TileScale tile_scale(const float* values, bool power_of_2) {
    const Magnitude mine = magnitude_of<kLaneElements>(values);
    const float amax = bits_float(largest_of_lanes<kTileLanes>(mine.bits));
    return {scale_of<Format>(amax, power_of_2), mine.all_finite};
}

// E4M3 codes of four elements, the first in the lowest byte; all_finite may be false even if they are.
__device__ inline uint32_t encode_four(const float* values, float multiplier, bool all_finite) {
    float products[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) products[i] = values[i] * multiplier;
    uint32_t codes = encode_four(products);
    if (!all_finite) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (!is_finite(values[i])) codes = (codes & ~(0xffu << 8 * i)) | uint32_t{E4M3::kNaN} << 8 * i;
    }
    return codes;
}

// kCount codes as they lie in memory.
template <class Codes, int kCount>
struct CodeWords {
    uint32_t of[kCount * Codes::kBytes / static_cast<int>(kTile) / 4];
};

// How codes lie in memory: `kBytes` a tile; a row of n codes takes row_bytes(n). A lane reads or writes
// kRun<T> codes at a time beside elements of type T.
struct E4M3Codes {
    using Format = E4M3;
    static constexpr int kBytes = static_cast<int>(kTile);
    static constexpr int kAlignment = 8;  // what kVector asks of a tile's address
    static DSE_FN int64_t row_bytes(int64_t n) { return n; }
    template <class T>
    static constexpr int kRun = 16 / static_cast<int>(sizeof(T));

    // kCount elements at `to`, of which `count` exist.
    template <bool kVector, int kCount>
    static __device__ void store(const float* values, float multiplier, bool all_finite, int64_t count,
                                 uint8_t* to) {
        uint32_t words[kCount / 4];
#pragma unroll
        for (int w = 0; w < kCount / 4; ++w) words[w] = encode_four(values + 4 * w, multiplier, all_finite);
        if constexpr (!kVector) {
#pragma unroll
            for (int i = 0; i < kCount; ++i)
                if (i < count) to[i] = static_cast<uint8_t>(words[i / 4] >> 8 * (i % 4));
        } else if constexpr (kCount == 4) {
            *reinterpret_cast<uint32_t*>(to) = words[0];
        } else {
            *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
        }
    }

    // kCount codes at `from`, of which `count` exist, zeros for the rest.
    template <bool kVector, int kCount>
    static __device__ CodeWords<E4M3Codes, kCount> fetch(const uint8_t* from, int64_t count) {
        CodeWords<E4M3Codes, kCount> words{};
        if constexpr (!kVector) {
#pragma unroll
            for (int i = 0; i < kCount; ++i)
                if (i < count) words.of[i / 4] |= static_cast<uint32_t>(from[i]) << 8 * (i % 4);
        } else if constexpr (kCount == 4) {
            words.of[0] = *reinterpret_cast<const uint32_t*>(from);
        } else {
            const uint2 both = *reinterpret_cast<const uint2*>(from);
            words.of[0] = both.x, words.of[1] = both.y;
        }
        return words;
    }

    // Their values times the scale in FP32, saturated.
    template <int kCount>
    static __device__ void decode(const CodeWords<E4M3Codes, kCount>& words, float scale, float* values) {
#pragma unroll
        for (int w = 0; w < kCount / 4; ++w) decode_four(words.of[w], values + 4 * w);
#pragma unroll
        for (int i = 0; i < kCount; ++i) values[i] *= scale;
        if (fabsf(scale) >= kFloatMax / 2 / Format::kMax) {  // else no product is too large
#pragma unroll
            for (int i = 0; i < kCount; ++i) values[i] = kept_finite(values[i]);
        }
    }
};

// Eight codes in three words, those past the row's end 0.
struct E5M6Codes {
    using Format = E5M6;
    static constexpr int kBytes = static_cast<int>(kTile) / 8 * 12;
    static constexpr int kAlignment = 4;
    static DSE_FN int64_t row_bytes(int64_t n) { return e5m6_row_bytes(n); }
    template <class T>
    static constexpr int kRun = 8;

    template <bool kVector, int kCount>
    static __device__ void store(const float* values, float multiplier, bool all_finite, int64_t count,
                                 uint8_t* to) {
        static_assert(kCount == 8);
        uint32_t codes[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float v = values[i] * multiplier;
            codes[i] = (magnitude_code<E5M6>(v) & 0x7ffu) | (float_bits(v) >> 20 & 0x800u);
            if (!kVector && i >= count) codes[i] = 0;
        }
        if (!all_finite) {
#pragma unroll
            for (int i = 0; i < 8; ++i)
                if (!is_finite(values[i])) codes[i] = E5M6::kNaN;
        }
        const uint32_t words[3] = {codes[0] | codes[1] << 12 | codes[2] << 24,
                                   codes[2] >> 8 | codes[3] << 4 | codes[4] << 16 | codes[5] << 28,
                                   codes[5] >> 4 | codes[6] << 8 | codes[7] << 20};
        put<kVector>(words, to);
    }

    template <bool kVector, int kCount>
    static __device__ CodeWords<E5M6Codes, kCount> fetch(const uint8_t* from, int64_t) {
        static_assert(kCount == 8);
        CodeWords<E5M6Codes, kCount> words;
#pragma unroll
        for (int i = 0; i < 3; ++i)
            words.of[i] = kVector ? reinterpret_cast<const uint32_t*>(from)[i] : word_of(from + 4 * i);
        return words;
    }

    template <int kCount>
    static __device__ void decode(const CodeWords<E5M6Codes, kCount>& words, float scale, float* values) {
        const uint32_t a = words.of[0], b = words.of[1], c = words.of[2];
        // Two codes to a word, each as the half that it is the upper part of.
        const auto pair = [](uint32_t low, uint32_t high) { return (low & 0xfff0u) | (high & 0xfff00000u); };
        widen_pair(pair(a << 4, a << 8), values, F16{});
        widen_pair(pair(a >> 20 | b << 12, b << 16), values + 2, F16{});
        widen_pair(pair(b >> 12, b >> 8 | c << 24), values + 4, F16{});
        widen_pair(pair(c >> 4, c), values + 6, F16{});
#pragma unroll
        for (int i = 0; i < 8; ++i) values[i] = kept_finite(values[i] * scale);  // a code may be infinite
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
};

// A lane's share of a tile's codes, the tile starting at `tile`.
template <class Codes, bool kVector, int kRun>
__device__ inline void store_tile(const float* values, const TileScale& s, int lane, int64_t left,
                                  uint8_t* tile) {
#pragma unroll
    for (int run = 0; run < kLaneElements / kRun; ++run) {
        const int at = lane_element<kRun>(lane, run);
        if (at < left)
            Codes::template store<kVector, kRun>(values + run * kRun, s.scale.multiplier, s.all_finite,
                                                 left - at,
                                                 tile + at * Codes::kBytes / static_cast<int>(kTile));
    }
}

}  // namespace dse::cuda
