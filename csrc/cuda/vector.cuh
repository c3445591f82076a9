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

template <int kCount = kVectorLength>
__device__ inline void load_vector(const float* p, float* out) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
        const float4 four = *reinterpret_cast<const float4*>(p + i);
        out[i] = four.x, out[i + 1] = four.y, out[i + 2] = four.z, out[i + 3] = four.w;
    }
}

template <int kCount = kVectorLength,
          class Half>  // Bf16 or F16: two to a word, the lower address in the lower half
__device__ inline void load_vector(const Half* p, float* out) {
    static_assert(kCount == 8);
    const uint4 words = *reinterpret_cast<const uint4*>(p);
    widen_pair(words.x, out, Half{});
    widen_pair(words.y, out + 2, Half{});
    widen_pair(words.z, out + 4, Half{});
    widen_pair(words.w, out + 6, Half{});
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
template <bool kSaturate, int kCount = kVectorLength>
__device__ inline void store_vector(const float* values, float* p) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
        uint32_t words[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
            words[j] = float_bits(kSaturate ? kept_finite(values[i + j]) : values[i + j]);
        store_sixteen(make_uint4(words[0], words[1], words[2], words[3]), p + i);
    }
}

template <bool kSaturate, int kCount = kVectorLength, class Half>
__device__ inline void store_vector(const float* values, Half* p) {
    static_assert(kCount == 8);
    const auto pair = [&](int i) { return round_pair<kSaturate>(values[i], values[i + 1], Half{}); };
    store_sixteen(make_uint4(pair(0), pair(2), pair(4), pair(6)), p);
}

// Four bytes as the word that holds them, the lowest address first.
__device__ inline uint32_t word_of(const uint8_t* bytes) {
    return bytes[0] | static_cast<uint32_t>(bytes[1]) << 8 | static_cast<uint32_t>(bytes[2]) << 16 |
           static_cast<uint32_t>(bytes[3]) << 24;
}

}  // namespace dse::cuda
