// The types of numbers that kernels read and write, known at run time.
#pragma once
#include "formats/bf16.h"
#include "formats/f16.h"

namespace dse::cpu {

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

}  // namespace dse::cpu
