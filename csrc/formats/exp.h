// exp and sigmoid in FP32, the only ones of this package: the same bits on every CPU tier and on a GPU, since
// every operation is an IEEE one and a fused multiply-add happens exactly where it is written. The formulas
// and their error bounds are in formats/exp.inc; here are their operations on one float.
#pragma once
#include "formats/quotient.h"

namespace dse {

// Adding 1.5 * 2^23 rounds to an integer, which the low bits of the sum then hold.
inline constexpr float kExpShift = 0x1.8p23f;
// exp is 0 from here down, and infinite from here up.
inline constexpr float kExpZero = -104.5f;
inline constexpr float kExpInfinity = 89.0f;

DSE_FN float constant(float c, float) { return c; }
DSE_FN float reciprocal(float d) { return divide_moderate(1.0f, d); }
DSE_FN float at_least(float x, float low) { return x < low ? low : x; }
DSE_FN float at_most(float x, float high) { return x > high ? high : x; }
DSE_FN float negative_magnitude(float x) { return bits_float(float_bits(x) | 0x80000000u); }
DSE_FN float where_negative(float x, float a, float b) { return float_bits(x) >> 31 ? a : b; }

// In two steps, of which the first is exact: x is between 0.5 and 2, n between -151 and 128.
DSE_FN float times_power_of_2(float x, float shifted) {
    const int32_t n = static_cast<int32_t>(float_bits(shifted) - float_bits(kExpShift));
    const int32_t half = n >> 1;
    const float first = bits_float(static_cast<uint32_t>(half + 127) << 23);
    const float second = bits_float(static_cast<uint32_t>(n - half + 127) << 23);
    return x * first * second;
}

// The power itself may be subnormal: it is exact, coming from one that is not. The bits of `shifted` end in
// n.
DSE_FN float times_small_power_of_2(float x, float shifted) {
    const float power = bits_float((float_bits(shifted) << 23) + ((127u + 64u) << 23)) * 0x1p-64f;
    return x * power;
}

#define DSE_EXP_FN DSE_FN
#include "formats/exp.inc"
#undef DSE_EXP_FN

}  // namespace dse
