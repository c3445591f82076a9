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
#include "formats/bits.h"

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

template <class Format>
DSE_FN Scale scale_of(float amax, bool power_of_2) {
    if (amax == 0.0f) return {1.0f, 1.0f};
    const float a = amax < kMinAmax ? kMinAmax : amax;
    if (!power_of_2) return {divide(a, Format::kMax), divide(Format::kMax, a)};
    const float scale = power_of_2_at_least(divide(a, Format::kMax));
    return {scale, divide(1.0f, scale)};
}

}  // namespace dse
