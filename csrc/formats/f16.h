// FP16 (IEEE half) as its 16 bits: 1 sign, 5 exponent (bias 15), 10 mantissa bits.
#pragma once
#include "formats/bits.h"

namespace dse {

struct F16 {
    uint16_t bits;
};

inline constexpr uint16_t kF16NaN = 0x7e00;
inline constexpr float kF16Max = 65504.0f;  // 0x7bff

DSE_FN float f16_to_float(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
    const uint32_t magnitude = h & 0x7fffu;
    if (magnitude >= 0x7c00u) return bits_float(sign | kFloatInfBits | (magnitude & 0x3ffu) << 13);
    if (magnitude < 0x400u) return bits_float(sign | float_bits(static_cast<float>(magnitude) * 0x1p-24f));
    return bits_float(sign | ((magnitude << 13) + (112u << 23)));
}

// Nearest even, subnormals exact; beyond the largest finite value to infinity, as IEEE does; any NaN becomes
// 0x7e00.
DSE_FN uint16_t float_to_f16(float x) {
    const uint32_t u = float_bits(x);
    const uint32_t sign = (u >> 16) & 0x8000u;
    const uint32_t a = u & 0x7fffffffu;
    if (a > kFloatInfBits) return kF16NaN;
    if (a >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 lies half-way to 2^16
    if (a < 0x38800000u) {  // below 2^-14: round to multiples of 2^-24
        return static_cast<uint16_t>(sign | (float_bits(bits_float(a) + 0.5f) & 0x7ffu));
    }
    return static_cast<uint16_t>(sign | ((a + 0xfffu + ((a >> 13) & 1u) - (112u << 23)) >> 13));
}

}  // namespace dse
