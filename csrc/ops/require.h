// Requirements that several families state, in the words of deepseek_ext/ops/_checks.py.
#pragma once
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "ops/check.h"
#include "ops/describe.h"

namespace dse {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline bool is_plain_float(ScalarType dtype) {
    return dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
}

inline void require_float(const char* op, const char* name, const Tensor& x) {
    DSE_REQUIRE(is_plain_float(x.scalar_type()), op, ": ", name,
                " must be bfloat16, float16 or float32, got ", describe(x.scalar_type()),
                "; convert it with .float()");
}

template <class... Remedy>
void require_float32(const char* op, const char* name, const Tensor& x, const Remedy&... remedy) {
    DSE_REQUIRE(x.scalar_type() == ScalarType::Float, op, ": ", name, " must be float32, got ",
                describe(x.scalar_type()), "; ", remedy...);
}

inline void require_float32(const char* op, const char* name, const Tensor& x) {
    require_float32(op, name, x, "convert it with .float()");
}

inline void require_int32(const char* op, const char* name, const Tensor& x) {
    DSE_REQUIRE(x.scalar_type() == ScalarType::Int, op, ": ", name, " must be int32, got ",
                describe(x.scalar_type()), "; convert it with .int()");
}

}  // namespace dse
