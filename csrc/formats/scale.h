// The scale rule: from the largest finite magnitude of a tile or block to its scale and multiplier.
//
//   amax == 0:   scale = 1, multiplier = 1
//   otherwise:   a = max(amax, 2^-110), scale = a / max_code, multiplier = max_code / a
//   power_of_2:  scale = 2^ceil(log2(a / max_code)), multiplier = 1 / scale, both exact
//
// code = encode(x * multiplier); x is about decode(code) * scale. The floor 2^-110 keeps the multiplier
// finite and both quotients normal; there is no larger floor, since gradients of 1e-7 must keep their
// precision.
#pragma once
#include "formats/quotient.h"

namespace dse {

struct Scale {
    float scale;
    float multiplier;
};

inline constexpr float kMinAmax = 0x1p-110f;

// 2^ceil(log2(x)) for a positive normal x whose result is finite.
DSE_FN float power_of_2_at_least(float x) {
    const uint32_t u = float_bits(x);
    return bits_float((u + 0x7fffffu) & kFloatInfBits);
}

// a / max_code and max_code / a for a in [2^-110, 2^128).
template <class Format>
DSE_FN float scale_for(float a) {
#if defined(__CUDA_ARCH__)
    return corrected_quotient(a, Format::kMax, 1.0f / Format::kMax);
#else
    return divide(a, Format::kMax);
#endif
}
template <class Format>
DSE_FN float multiplier_for(float a) {
#if defined(__CUDA_ARCH__)
    // 1 / a need not be a normal number: divides by the significand and subtracts the exponent.
    const uint32_t exponent = float_bits(a) & kFloatInfBits;
    const float significand = bits_float(float_bits(a) - exponent + kFloatOneBits);
    return bits_float(float_bits(divide_moderate(Format::kMax, significand)) - exponent + kFloatOneBits);
#else
    return divide(Format::kMax, a);
#endif
}

template <class Format>
DSE_FN Scale scale_of(float amax, bool power_of_2) {
    if (amax == 0.0f) return {1.0f, 1.0f};
    const float a = amax < kMinAmax ? kMinAmax : amax;
    const float scale = scale_for<Format>(a);
    if (!power_of_2) return {scale, multiplier_for<Format>(a)};
    const float power = power_of_2_at_least(scale);
    return {power, bits_float(2 * kFloatOneBits - float_bits(power))};  // 1 / power
}

}  // namespace dse
