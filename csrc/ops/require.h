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

// Of what is written: rules out that some elements surely share their place in memory. `name` in pieces.
template <class... Name>
void require_own_memory(const char* op, const Tensor& x, const Name&... name) {
    bool shared = false;
    for (int64_t d = 0; d < x.dim(); ++d) shared |= x.size(d) > 1 && x.stride(d) == 0;
    DSE_REQUIRE(!shared, op, ": ", name..., " must not share memory between its elements, got strides ",
                describe(strides_of(x)), " for shape ", describe(x), "; pass a .clone()");
}

}  // namespace dse
