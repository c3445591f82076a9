// BF16 as its 16 bits: the upper half of a float.
#pragma once
#include "formats/bits.h"

namespace dse {

struct Bf16 {
    uint16_t bits;
};

inline constexpr uint16_t kBf16NaN = 0x7fc0;
inline constexpr float kBf16Max = 3.38953138925153547590e38f;  // 0x7f7f

DSE_FN float bf16_to_float(uint16_t h) { return bits_float(static_cast<uint32_t>(h) << 16); }

// Nearest even; beyond the largest finite value to infinity, as IEEE does; any NaN becomes 0x7fc0.
DSE_FN uint16_t float_to_bf16(float x) {
    const uint32_t u = float_bits(x);
    if ((u & 0x7fffffffu) > kFloatInfBits) return kBf16NaN;
    return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

}  // namespace dse
