// Sixteen bytes at a time between memory and registers, as FP32 on this side whatever the type on the other.
//
// A Vector holds kVectorLength elements unless said otherwise: 16 bytes of BF16 or FP16, 32 of FP32. Pointers
// given to the vector forms must be 16-byte aligned (see vector_rows); the scalar forms take any pointer and
// a count.
#pragma once
#include "cuda/convert.cuh"
#include "formats/views.h"

namespace dse::cuda {

inline constexpr int kVectorLength = 8;

inline __host__ __device__ bool is_aligned(const void* p, int64_t bytes) {
    return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

// Whether every row of a matrix of `element` bytes an entry can be read or written in whole Vectors: rows
// begin at 16-byte boundaries and their length is a multiple of kVectorLength.
inline __host__ __device__ bool vector_rows(const void* data, int64_t columns, int64_t row_stride,
                                            int64_t element) {
    return is_aligned(data, 16) && columns % kVectorLength == 0 && row_stride * element % 16 == 0;
}

// Sixteen bytes, four of FP32 or eight of the others, the lower address in the lower half of a word.
__device__ inline void widen_sixteen(uint4 words, float* values, float) {
    values[0] = bits_float(words.x), values[1] = bits_float(words.y);
    values[2] = bits_float(words.z), values[3] = bits_float(words.w);
}
template <class Half>
__device__ inline void widen_sixteen(uint4 words, float* values, Half type) {
    widen_pair(words.x, values, type), widen_pair(words.y, values + 2, type);
    widen_pair(words.z, values + 4, type), widen_pair(words.w, values + 6, type);
}

template <int kCount = kVectorLength, class T>
__device__ inline void load_vector(const T* p, float* out) {
    constexpr int kEach = 16 / static_cast<int>(sizeof(T));
#pragma unroll
    for (int i = 0; i < kCount; i += kEach)
        widen_sixteen(*reinterpret_cast<const uint4*>(p + i), out + i, T{});
}

// The first `count` of kCount elements, and zeros for the rest.
template <int kCount = kVectorLength, class T>
__device__ inline void load_some(const T* p, int64_t count, float* out) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) out[i] = i < count ? to_float(p[i]) : 0.0f;
}

// To a 16-byte boundary of global memory, in one request: nvcc 13 splits some plain stores into four.
__device__ inline void store_sixteen(uint4 bytes, void* p) { __stwb(static_cast<uint4*>(p), bytes); }

// Rounded to nearest even; with kSaturate within the largest finite values of the type.
template <bool kSaturate>
__device__ inline uint4 round_sixteen(const float* values, float) {
    const auto word = [&](int i) { return float_bits(kSaturate ? kept_finite(values[i]) : values[i]); };
    return make_uint4(word(0), word(1), word(2), word(3));
}
template <bool kSaturate, class Half>
__device__ inline uint4 round_sixteen(const float* values, Half type) {
    const auto pair = [&](int i) { return round_pair<kSaturate>(values[i], values[i + 1], type); };
    return make_uint4(pair(0), pair(2), pair(4), pair(6));
}

template <bool kSaturate, int kCount = kVectorLength, class T>
__device__ inline void store_vector(const float* values, T* p) {
    constexpr int kEach = 16 / static_cast<int>(sizeof(T));
#pragma unroll
    for (int i = 0; i < kCount; i += kEach) store_sixteen(round_sixteen<kSaturate>(values + i, T{}), p + i);
}

// Four bytes as the word that holds them, the lowest address first.
__device__ inline uint32_t word_of(const uint8_t* bytes) {
    return bytes[0] | static_cast<uint32_t>(bytes[1]) << 8 | static_cast<uint32_t>(bytes[2]) << 16 |
           static_cast<uint32_t>(bytes[3]) << 24;
}

}  // namespace dse::cuda
