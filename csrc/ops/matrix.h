// Tensors as the CPU kernels take them: in place wherever rows can be walked with one stride, else a copy.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "cpu/quantize.h"
#include "ops/check.h"
#include "ops/describe.h"

namespace dse {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline cpu::FloatType float_type(ScalarType dtype) {
    switch (dtype) {
        case ScalarType::Float:
            return cpu::FloatType::kFloat32;
        case ScalarType::BFloat16:
            return cpu::FloatType::kBfloat16;
        case ScalarType::Half:
            return cpu::FloatType::kFloat16;
        default:
            fail("no kernel for ", describe(dtype));
    }
}

inline int64_t rows_of(const Tensor& x) {
    int64_t rows = 1;
    for (int64_t i = 0; i + 1 < x.dim(); ++i) rows *= x.size(i);
    return rows;
}

// The distance between rows if all leading dimensions step through memory as one does; -1 if not.
inline int64_t common_row_stride(const Tensor& x) {
    int64_t stride = 0, expected = 0;
    bool first = true;
    for (int64_t i = x.dim() - 2; i >= 0; --i) {
        if (x.size(i) == 1) continue;
        if (first) stride = x.stride(i);
        if (!first && x.stride(i) != expected) return -1;
        expected = x.stride(i) * x.size(i);
        first = false;
    }
    return stride;
}

// x [..., K] with its rows in place wherever they can be walked with one stride, else a contiguous copy.
inline Tensor walkable(const Tensor& x) {
    const int64_t last = x.dim() - 1;
    const bool adjacent = x.size(last) <= 1 || x.stride(last) == 1;
    return adjacent && common_row_stride(x) >= 0 ? x : torch::stable::contiguous(x);
}

// A walkable x.
inline cpu::FloatMatrix float_matrix(const Tensor& x) {
    return {x.const_data_ptr(), float_type(x.scalar_type()), rows_of(x), x.size(x.dim() - 1),
            common_row_stride(x)};
}

// x without gaps.
inline Tensor packed(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }
inline std::optional<Tensor> packed(const std::optional<Tensor>& x) {
    if (!x) return std::nullopt;
    return packed(*x);
}

}  // namespace dse
