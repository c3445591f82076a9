// Conversions that a GPU makes of several numbers at a time, with the results of formats/*; but a NaN in BF16
// or FP16 has the device's bits, 0x7fff.
#pragma once
#include "formats/e4m3.h"
#include "formats/e5m6.h"
#include "formats/float_type.h"

namespace dse::cuda {

// The larger magnitude; NaN if either is NaN.
__device__ inline float larger_magnitude(float a, float b) {
    float result;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(fabsf(a)), "f"(fabsf(b)));
    return result;
}

// x within +-kFloatMax; NaN stays NaN.
__device__ inline float kept_finite(float x) {
    float result;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(-kFloatMax));
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(result), "f"(kFloatMax));
    return result;
}

// Two numbers rounded to nearest even, the first in the lower half; beyond the largest finite value to
// infinity, or with kSaturate to that value.
template <bool kSaturate>
__device__ inline uint32_t round_pair(float low, float high, Bf16) {
    uint32_t pair;
    if (kSaturate)
        asm("cvt.rn.satfinite.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    else
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}
template <bool kSaturate>
__device__ inline uint32_t round_pair(float low, float high, F16) {
    uint32_t pair;
    if (kSaturate)
        asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// The two halves of a word as floats.
__device__ inline void widen_pair(uint32_t pair, float* values, Bf16) {
    values[0] = bits_float(pair << 16);
    values[1] = bits_float(pair & 0xffff0000u);
}
__device__ inline void widen_pair(uint32_t pair, float* values, F16) {
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high; }"
        : "=f"(values[0]), "=f"(values[1])
        : "r"(pair));
}

// The code of |v| in its low bits, those above the format's magnitude being of no use; v is finite and its
// code does not exceed the largest.
//
// With 2^e the power of two at or below |v|, and at least the smallest normal, |v| + 2^e * 2^(23 - mantissa
// bits) has a last place of 2^(e - mantissa bits): the addition rounds to the code's mantissa, which the
// sum's low bits then hold, its leading 1 and a carry into the next binade included. The exponent above it
// comes from the power; 2^e times the format's bias, added too, takes FP32's bias and the leading 1 off it.
template <class Format>
__device__ inline uint32_t magnitude_code(float v) {
    constexpr int kDropped = 23 - Format::kMantissaBits;
    constexpr float kLeastNormal = 2.0f / (1 << Format::kBias);
    const float power = fmaxf(bits_float(float_bits(v) & kFloatInfBits), kLeastNormal);
    const float sum = __fmaf_rn(power, static_cast<float>((1 << kDropped) + Format::kBias), fabsf(v));
    return float_bits(sum) + (float_bits(power) >> kDropped);
}

// E4M3 codes of four numbers below 464 in magnitude, the first in the lowest byte.
__device__ inline uint32_t encode_four(const float* v) {
#if __CUDA_ARCH__ >= 890
    uint32_t codes;
    asm("{ .reg .b16 low, high;\n"
        "  cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
        "  cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
        "  mov.b32 %0, {low, high}; }"
        : "=r"(codes)
        : "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]));
    return codes;
#else
    const auto bytes = [](uint32_t a, uint32_t b, uint32_t c, uint32_t d, unsigned byte) {
        const unsigned pair = byte | (byte + 4) << 4;
        return __byte_perm(__byte_perm(a, b, pair), __byte_perm(c, d, pair), 0x5410);
    };
    const uint32_t magnitudes = bytes(magnitude_code<E4M3>(v[0]), magnitude_code<E4M3>(v[1]),
                                      magnitude_code<E4M3>(v[2]), magnitude_code<E4M3>(v[3]), 0);
    const uint32_t signs = bytes(float_bits(v[0]), float_bits(v[1]), float_bits(v[2]), float_bits(v[3]), 3);
    return (magnitudes & 0x7f7f7f7fu) | (signs & 0x80808080u);
#endif
}

// Four codes as four BF16 in two words, exactly; a NaN code becomes 480, see has_nan. Exponent and mantissa
// of a code, at the place of a BF16's, are the code's value times 2^-120 (7 - 127), of subnormal codes too,
// which are subnormal there as well; a fused multiply-add with -0 undoes that and keeps the sign of zero.
__device__ inline void decode_codes(uint32_t codes, uint32_t& low, uint32_t& high) {
    constexpr uint32_t kTwoTo120 = 0x7b807b80u, kMinusZero = 0x80008000u;
    const auto decode = [](uint32_t upper_bytes) {
        const uint32_t magnitude = (upper_bytes >> 4) & 0x07f007f0u;
        uint32_t value;
        asm("fma.rn.bf16x2 %0, %1, %2, %3;"
            : "=r"(value)
            : "r"(magnitude | (upper_bytes & 0x80008000u)), "r"(kTwoTo120), "r"(kMinusZero));
        return value;
    };
    low = decode(__byte_perm(codes, 0, 0x1404));
    high = decode(__byte_perm(codes, 0, 0x3424));
}

// Whether one of four codes is NaN (0x7f or 0xff): only there does adding 1 to the magnitude carry into
// bit 7.
__device__ inline uint32_t has_nan(uint32_t codes) {
    return ((codes & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u;
}

// What decode_codes made of NaN codes, 480 or -480 = 0x43f0 or 0xc3f0, replaced by NaN.
__device__ inline uint32_t restore_nan(uint32_t values) {
    if ((values & 0x7fffu) == 0x43f0u) values |= 0x7fc0u;
    if ((values & 0x7fff0000u) == 0x43f00000u) values |= 0x7fc00000u;
    return values;
}

// Four E4M3 codes, the first in the lowest byte, as floats.
__device__ inline void decode_four(uint32_t codes, float* values) {
#if __CUDA_ARCH__ >= 890
    uint32_t low, high;
    asm("{ .reg .b16 low, high;\n"
        "  mov.b32 {low, high}, %2;\n"
        "  cvt.rn.f16x2.e4m3x2 %0, low;\n"
        "  cvt.rn.f16x2.e4m3x2 %1, high; }"
        : "=r"(low), "=r"(high)
        : "r"(codes));
    widen_pair(low, values, F16{});
    widen_pair(high, values + 2, F16{});
#else
    uint32_t low, high;
    decode_codes(codes, low, high);
    if (has_nan(codes)) low = restore_nan(low), high = restore_nan(high);
    widen_pair(low, values, Bf16{});
    widen_pair(high, values + 2, Bf16{});
#endif
}

}  // namespace dse::cuda
