// The types of numbers that kernels read and write, known at run time.
#pragma once
#include "formats/bf16.h"
#include "formats/f16.h"

namespace dse {

enum class FloatType { kFloat32, kBfloat16, kFloat16 };

// f called with a zero of the C++ type of `type`.
template <class F>
void with_type(FloatType type, const F& f) {
    switch (type) {
        case FloatType::kFloat32:
            return f(float{});
        case FloatType::kBfloat16:
            return f(Bf16{});
        case FloatType::kFloat16:
            return f(F16{});
    }
}

DSE_FN float to_float(float x) { return x; }
DSE_FN float to_float(Bf16 x) { return bf16_to_float(x.bits); }
DSE_FN float to_float(F16 x) { return f16_to_float(x.bits); }

// Rounded to nearest even, to infinity beyond the largest finite value.
DSE_FN void round_to(float x, float* out) { *out = x; }
DSE_FN void round_to(float x, Bf16* out) { out->bits = float_to_bf16(x); }
DSE_FN void round_to(float x, F16* out) { out->bits = float_to_f16(x); }

// Saturates at the largest finite value; NaN stays NaN.
DSE_FN float saturated(float x, float limit) { return x > limit ? limit : x < -limit ? -limit : x; }

// Rounded to nearest even after saturation, as dequantising does.
DSE_FN void from_float(float x, float* out) { *out = saturated(x, kFloatMax); }
DSE_FN void from_float(float x, Bf16* out) { out->bits = float_to_bf16(saturated(x, kBf16Max)); }
DSE_FN void from_float(float x, F16* out) { out->bits = float_to_f16(saturated(x, kF16Max)); }

}  // namespace dse
