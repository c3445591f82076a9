// Tensors as kernels take them: in place wherever rows can be walked with one stride, else a copy.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "formats/views.h"
#include "ops/check.h"
#include "ops/describe.h"

namespace dse {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline FloatType float_type(ScalarType dtype) {
    switch (dtype) {
        case ScalarType::Float:
            return FloatType::kFloat32;
        case ScalarType::BFloat16:
            return FloatType::kBfloat16;
        case ScalarType::Half:
            return FloatType::kFloat16;
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
inline FloatMatrix float_matrix(const Tensor& x) {
    return {x.const_data_ptr(), float_type(x.scalar_type()), rows_of(x), x.size(x.dim() - 1),
            common_row_stride(x)};
}

// x with adjacent columns: itself wherever they are, else a contiguous copy. Other dimensions: any strides.
inline Tensor with_whole_rows(const Tensor& x) {
    const int64_t last = x.dim() - 1;
    return x.size(last) <= 1 || x.stride(last) == 1 ? x : torch::stable::contiguous(x);
}

// [B, N, T, D] with whole rows, to be read or, where an operator has said so, written.
inline HeadRows head_rows(const Tensor& x) {
    return {const_cast<void*>(x.const_data_ptr()), x.stride(0), x.stride(1), x.stride(2)};
}

// Scales [..., T] must be walkable too, but along T any stride will do.
inline Tensor walkable_scales(const Tensor& scales) {
    return common_row_stride(scales) >= 0 ? scales : torch::stable::contiguous(scales);
}

// Walkable codes and scales; `rows_per_scale` 1 or 128.
inline CodeMatrix code_matrix(const Tensor& codes, const Tensor& scales, int64_t rows_per_scale) {
    return {static_cast<const uint8_t*>(codes.const_data_ptr()),
            static_cast<const float*>(scales.const_data_ptr()),
            rows_of(codes),
            codes.size(codes.dim() - 1),
            common_row_stride(codes),
            common_row_stride(scales),
            scales.stride(scales.dim() - 1),
            rows_per_scale};
}

// Walkable rows of k packed E5M6 codes and their scales.
inline PackedMatrix packed_matrix(const Tensor& packed, const Tensor& scales, int64_t k) {
    return {static_cast<const uint8_t*>(packed.const_data_ptr()),
            static_cast<const float*>(scales.const_data_ptr()),
            rows_of(packed),
            k,
            common_row_stride(packed),
            common_row_stride(scales),
            scales.stride(scales.dim() - 1)};
}

// Walkable scales to be written.
inline ScaleMatrix scale_matrix(const Tensor& scales) {
    return {static_cast<float*>(scales.mutable_data_ptr()), common_row_stride(scales),
            scales.stride(scales.dim() - 1)};
}

// A stack [E, N, K] as its matrices: each with its rows in place, else all of it copied.
inline Tensor stack_of(const Tensor& w) {
    const int64_t last = w.dim() - 1;
    return w.size(last) <= 1 || w.stride(last) == 1 ? w : torch::stable::contiguous(w);
}

// x without gaps.
inline Tensor packed(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }
inline std::optional<Tensor> packed(const std::optional<Tensor>& x) {
    if (!x) return std::nullopt;
    return packed(*x);
}

}  // namespace dse
