// Sixteen bytes at a time between memory and registers, as FP32 on this side whatever the type on the other.
//
// A Vector holds kVectorLength elements: 16 bytes of BF16 or FP16, 32 of FP32. Pointers given to the vector
// forms must be 16-byte aligned (see vector_rows); the scalar forms take any pointer and a count.
#pragma once
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

__device__ inline void load_vector(const float* p, float* out) {
    const float4 a = reinterpret_cast<const float4*>(p)[0], b = reinterpret_cast<const float4*>(p)[1];
    out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
    out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
}

template <class Half>  // Bf16 or F16: two to a word, the lower address in the lower half
__device__ inline void load_vector(const Half* p, float* out) {
    const uint4 words = *reinterpret_cast<const uint4*>(p);
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        out[2 * i] = to_float(Half{static_cast<uint16_t>(word[i] & 0xffffu)});
        out[2 * i + 1] = to_float(Half{static_cast<uint16_t>(word[i] >> 16)});
    }
}

// The first `count` of kVectorLength elements, and zeros for the rest.
template <class T>
__device__ inline void load_some(const T* p, int64_t count, float* out) {
#pragma unroll
    for (int i = 0; i < kVectorLength; ++i) out[i] = i < count ? to_float(p[i]) : 0.0f;
}

// To a 16-byte boundary of global memory, in one request: nvcc 13 splits some plain stores into four.
__device__ inline void store_sixteen(uint4 bytes, void* p) { __stwb(static_cast<uint4*>(p), bytes); }

__device__ inline void store_vector(const float* values, float* p) {
    const auto four = [&](int i) {
        return make_uint4(float_bits(values[i]), float_bits(values[i + 1]), float_bits(values[i + 2]),
                          float_bits(values[i + 3]));
    };
    store_sixteen(four(0), p);
    store_sixteen(four(4), p + 4);
}

template <class Half>  // values already rounded
__device__ inline void store_vector(const Half* values, Half* p) {
    const auto pair = [&](int i) {
        return static_cast<uint32_t>(values[i].bits) | static_cast<uint32_t>(values[i + 1].bits) << 16;
    };
    store_sixteen(make_uint4(pair(0), pair(2), pair(4), pair(6)), p);
}

// Four bytes as the word that holds them, the lowest address first.
__device__ inline uint32_t word_of(const uint8_t* bytes) {
    return bytes[0] | static_cast<uint32_t>(bytes[1]) << 8 | static_cast<uint32_t>(bytes[2]) << 16 |
           static_cast<uint32_t>(bytes[3]) << 24;
}

}  // namespace dse::cuda
