// E5M6: the top 12 bits of an IEEE half: 1 sign, 5 exponent (bias 15), 6 mantissa bits. Largest finite 65024,
// smallest normal 2^-14, smallest subnormal 2^-20, NaN 0x7ff; infinities are never produced. Eight codes are
// packed in 12 bytes: code i is bits 12i..12i+11 of the little-endian 96-bit word, hence two codes in every
// three bytes.
#pragma once
#include "formats/f16.h"

namespace dse {

struct E5M6 {
    static constexpr float kMax = 65024.0f;
    static constexpr uint16_t kMaxCode = 0x7bf;
    static constexpr uint16_t kNaN = 0x7ff;
    static constexpr int kMantissaBits = 6, kBias = 15;

    // Nearest even directly from FP32 (by way of a half it would be rounded twice), saturating to +-65024,
    // subnormals exact, -0 kept; NaN becomes 0x7ff, whatever its sign.
    static DSE_FN uint16_t encode(float x) {
        const uint32_t u = float_bits(x);
        const uint16_t sign = static_cast<uint16_t>((u >> 20) & 0x800u);
        const uint32_t a = u & 0x7fffffffu;
        if (a > kFloatInfBits) return kNaN;
        if (a >= 0x477f0000u) return sign | kMaxCode;  // 65280 lies half-way between 65024 and 2^16
        if (a < 0x38800000u) {                         // below 2^-14: adding 8 rounds to multiples of 2^-20
            return sign | static_cast<uint16_t>(float_bits(bits_float(a) + 8.0f) & 0x7fu);
        }
        const uint32_t rounded = (a + 0xffffu + ((a >> 17) & 1u)) >> 17;  // 8 exponent and 6 mantissa bits
        return sign | static_cast<uint16_t>(rounded - (112u << 6));       // bias 127 to bias 15
    }

    static DSE_FN float decode(uint16_t code) { return f16_to_float(static_cast<uint16_t>(code << 4)); }
};

// Bytes of a packed row of k codes.
DSE_FN int64_t e5m6_row_bytes(int64_t k) { return 12 * ((k + 7) / 8); }

DSE_FN void e5m6_pack_pair(uint16_t even, uint16_t odd, uint8_t* bytes) {
    bytes[0] = static_cast<uint8_t>(even & 0xffu);
    bytes[1] = static_cast<uint8_t>((even >> 8) | (odd & 0xfu) << 4);
    bytes[2] = static_cast<uint8_t>(odd >> 4);
}

DSE_FN uint16_t e5m6_unpack(const uint8_t* row, int64_t i) {
    const uint8_t* bytes = row + i / 2 * 3;
    return static_cast<uint16_t>(i % 2 ? bytes[1] >> 4 | bytes[2] << 4 : bytes[0] | (bytes[1] & 0xfu) << 8);
}

}  // namespace dse
