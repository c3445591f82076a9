// What host and device code share: the function qualifier and the view of a float as its bits.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define DSE_FN __host__ __device__ inline
#else
#define DSE_FN inline __attribute__((always_inline))
#endif

namespace dse {

DSE_FN uint32_t float_bits(float x) {
#if defined(__CUDA_ARCH__)
    return __float_as_uint(x);
#else
    uint32_t u;
    std::memcpy(&u, &x, 4);
    return u;
#endif
}

DSE_FN float bits_float(uint32_t u) {
#if defined(__CUDA_ARCH__)
    return __uint_as_float(u);
#else
    float x;
    std::memcpy(&x, &u, 4);
    return x;
#endif
}

inline constexpr uint32_t kFloatInfBits = 0x7f800000u;
inline constexpr uint32_t kFloatOneBits = 0x3f800000u;
inline constexpr float kFloatMax = 3.40282346638528859812e38f;

DSE_FN bool is_finite(float x) { return (float_bits(x) & kFloatInfBits) != kFloatInfBits; }

// IEEE division, rounded to nearest even on host and device.
DSE_FN float divide(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fdiv_rn(a, b);
#else
    return a / b;
#endif
}

// a * b + c rounded once. Where the target has no such instruction, the C library's function: slow, and
// rounded once all the same.
DSE_FN float multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
    return __fmaf_rn(a, b, c);
#else
    return __builtin_fmaf(a, b, c);
#endif
}

}  // namespace dse
