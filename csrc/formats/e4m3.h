// E4M3 (torch.float8_e4m3fn): 1 sign, 4 exponent (bias 7), 3 mantissa bits. Largest finite 448, smallest
// normal 2^-6, smallest subnormal 2^-9, NaN 0x7f and 0xff, no infinity.
#pragma once
#include "formats/bits.h"

namespace dse {

struct E4M3 {
    static constexpr float kMax = 448.0f;
    static constexpr uint8_t kMaxCode = 0x7e;
    static constexpr uint8_t kNaN = 0x7f;
    static constexpr int kMantissaBits = 3, kBias = 7;

    // Nearest even, saturating to +-448, subnormals exact, -0 kept; NaN becomes 0x7f, whatever its sign.
    static DSE_FN uint8_t encode(float x) {
        const uint32_t u = float_bits(x);
        const uint8_t sign = static_cast<uint8_t>((u >> 24) & 0x80u);
        const uint32_t a = u & 0x7fffffffu;
        if (a > kFloatInfBits) return kNaN;
        if (a >= 0x43e80000u)
            return sign | kMaxCode;  // 464 lies half-way between 448 and the code that is NaN
        if (a < 0x3c800000u) {       // below 2^-6: adding 2^14 rounds to multiples of 2^-9
            const float shifted = bits_float(a) + 16384.0f;
            return sign | static_cast<uint8_t>(float_bits(shifted) & 0xffu);
        }
        const uint32_t rounded = (a + 0x7ffffu + ((a >> 20) & 1u)) >> 20;  // 8 exponent and 3 mantissa bits
        return sign | static_cast<uint8_t>(rounded - (120u << 3));         // bias 127 to bias 7
    }

    static DSE_FN float decode(uint8_t code) {
        const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24;
        const uint32_t magnitude = code & 0x7fu;
        if (magnitude == 0x7fu) return bits_float(sign | 0x7fc00000u);
#if defined(__CUDA_ARCH__)
        // One subnormal number of FP32 for each of E4M3; on a GPU they cost no more than others.
        return bits_float(sign | magnitude << 20) * 0x1p120f;
#else
        if (magnitude < 8) return bits_float(sign | float_bits(static_cast<float>(magnitude) * 0.001953125f));
        return bits_float(sign | ((magnitude << 20) + (120u << 23)));
#endif
    }
};

}  // namespace dse
