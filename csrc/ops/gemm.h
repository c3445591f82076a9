// What the gemm family asks of its arguments, on every device, and how it hands them to kernels;
// deepseek_ext/ops/gemm.py checks fake tensors in the same words.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <string>
#include <vector>

#include "formats/tiles.h"
#include "formats/views.h"
#include "ops/new_tensor.h"
#include "ops/require.h"

namespace dse::gemm {

inline void check_codes(const char* op, const char* name, const Tensor& x, int64_t dims, const char* layout,
                        const char* remedy) {
    DSE_REQUIRE(x.dim() == dims, op, ": ", name, " must be ", layout, ", got shape ", describe(x),
                "; reshape it before it is quantised");
    DSE_REQUIRE(x.scalar_type() == ScalarType::Float8_e4m3fn, op, ": ", name,
                " must hold float8_e4m3fn codes, got ", describe(x.scalar_type()), "; make them with ",
                remedy);
}

inline void check_scales(const char* op, const char* name, const Tensor& scales, const char* layout,
                         const std::vector<int64_t>& wanted, const char* codes) {
    require_float32(op, name, scales, "pass the scales that came with ", codes);
    DSE_REQUIRE(shape_of(scales) == wanted, op, ": ", name, " must be ", layout, " = ", describe(wanted),
                ", one scale for each tile or block of ", codes, ", got ", describe(scales),
                "; pass the scales that came with ", codes);
}

inline void check_depth(const char* op, const char* a_name, const Tensor& a, const char* b_name,
                        const Tensor& b, const char* letter) {
    DSE_REQUIRE(a.size(a.dim() - 1) == b.size(b.dim() - 1), op, ": ", a_name, " and ", b_name,
                " must agree in their last dimension ", letter, ", got ", describe(a), " and ", describe(b),
                "; transpose the one that has ", letter, " elsewhere");
}

inline void check_out_dtype(const char* op, ScalarType dtype) {
    DSE_REQUIRE(dtype == ScalarType::BFloat16 || dtype == ScalarType::Float, op,
                ": out_dtype must be bfloat16 or float32, got ", describe(dtype),
                "; convert the result afterwards");
}

inline void check_out(const char* op, const Tensor& out, const char* layout,
                      const std::vector<int64_t>& wanted) {
    require_float32(op, "out", out, "accumulate in float32");
    DSE_REQUIRE(shape_of(out) == wanted, op, ": out must be ", layout, " = ", describe(wanted), ", got ",
                describe(out), "; pass a tensor of the product's shape");
    const int64_t last = out.dim() - 1;
    DSE_REQUIRE(out.size(last) <= 1 || out.stride(last) == 1, op,
                ": out must have stride 1 along its last dimension, got ", out.stride(last),
                "; accumulate into a contiguous tensor");
}

inline void check_offs(const char* op, const Tensor& offs) {
    require_int32(op, "offs", offs);
    DSE_REQUIRE(offs.dim() == 1, op, ": offs must be [E], the end of each expert's rows, got shape ",
                describe(offs), "; flatten it");
}

// The values of offs, where the host can read them.
struct Ends {
    const int32_t* data;
    int64_t stride, count;

    int64_t operator[](int64_t e) const { return data[e * stride]; }
};

// The last group of rows must end at `most` or before.
inline void check_ends(const char* op, const Ends& ends, int64_t most, const char* limit) {
    int64_t before = 0;
    for (int64_t e = 0; e < ends.count; ++e) {
        const int64_t value = ends[e];
        DSE_REQUIRE(value >= before && value <= most, op, ": offs must ascend from 0 to at most ", limit,
                    " = ", most, ", got ", value, " after ", before, " at index ", e,
                    "; pass the offs of expert_order");
        before = value;
    }
}

// Each group's columns are rounded up to whole tiles; all of them must fit.
inline void check_columns(const char* op, const Ends& ends, int64_t columns) {
    check_ends(op, ends, columns, "M'");
    int64_t start = 0, column = 0;
    for (int64_t e = 0; e < ends.count; ++e) {
        column = next_group_start(column, ends[e] - start);
        start = ends[e];
    }
    DSE_REQUIRE(column <= columns, op, ": offs need ", column,
                " columns (each expert's rows rounded up to a multiple of 128), but a_t has M' = ", columns,
                "; pass the offs it was quantised with");
}

// b in blocks or in tiles; returns how many of its rows share a scale.
inline int64_t check_operands(const char* op, const Tensor& a, const Tensor& a_scales, const Tensor& b,
                              const Tensor& b_scales) {
    check_codes(op, "a", a, 2, "[M, K]", "quantize_tiles");
    check_codes(op, "b", b, 2, "[N, K]", "quantize_blocks or quantize_tiles");
    check_depth(op, "a", a, "b", b, "K");
    const int64_t m = a.size(0), n = b.size(0), depth = num_tiles(a.size(1));
    check_scales(op, "a_scales", a_scales, "[M, ceil(K/128)]", {m, depth}, "a");
    const bool in_tiles = b_scales.dim() == 2 && b_scales.size(0) == n;
    if (in_tiles) {
        check_scales(op, "b_scales", b_scales, "[N, ceil(K/128)]", {n, depth}, "b");
    } else {
        check_scales(op, "b_scales", b_scales, "[ceil(N/128), ceil(K/128)]", {num_tiles(n), depth}, "b");
    }
    return in_tiles ? 1 : kTile;
}

inline void check_grouped(const char* op, const Tensor& a, const Tensor& a_scales, const Tensor& b,
                          const Tensor& b_scales, const Tensor& offs) {
    check_codes(op, "a", a, 2, "[M, K]", "quantize_tiles");
    check_codes(op, "b", b, 3, "[E, N, K]", "quantize_blocks");
    check_depth(op, "a", a, "b", b, "K");
    const int64_t depth = num_tiles(a.size(1));
    check_scales(op, "a_scales", a_scales, "[M, ceil(K/128)]", {a.size(0), depth}, "a");
    check_scales(op, "b_scales", b_scales, "[E, ceil(N/128), ceil(K/128)]",
                 {b.size(0), num_tiles(b.size(1)), depth}, "b");
    check_offs(op, offs);
    DSE_REQUIRE(offs.size(0) == b.size(0), op, ": offs must hold one end for each of the ", b.size(0),
                " experts of b, got ", offs.size(0), "; give experts without rows the end before theirs");
}

inline void check_wgrad(const char* op, const Tensor& a_t, const Tensor& a_scales_t, const Tensor& b_t,
                        const Tensor& b_scales_t, const Tensor& offs) {
    check_codes(op, "a_t", a_t, 2, "[N, M']", "quantize_tiles_transposed");
    check_codes(op, "b_t", b_t, 2, "[K, M']", "quantize_tiles_transposed or retile");
    check_depth(op, "a_t", a_t, "b_t", b_t, "M'");
    const int64_t columns = a_t.size(1);
    DSE_REQUIRE(columns % kTile == 0, op, ": a_t must have M' columns, a multiple of 128, got ", columns,
                "; make it with quantize_tiles_transposed(x, offs)");
    check_scales(op, "a_scales_t", a_scales_t, "[N, M'/128]", {a_t.size(0), columns / kTile}, "a_t");
    check_scales(op, "b_scales_t", b_scales_t, "[K, M'/128]", {b_t.size(0), columns / kTile}, "b_t");
    check_offs(op, offs);
}

// The codes in a layout that the kernels read in place: stride 1 along K, or (B only) along the rows.
inline Tensor readable(const Tensor& codes, bool rows_may_be_inner) {
    const int64_t k = codes.dim() - 1, row = k - 1;
    const bool along_k = codes.size(k) <= 1 || codes.stride(k) == 1;
    const bool along_rows = rows_may_be_inner && (codes.size(row) <= 1 || codes.stride(row) == 1);
    return along_k || along_rows ? codes : torch::stable::contiguous(codes);
}

inline GemmOperand operand(const Tensor& codes, const Tensor& scales, int64_t rows_per_scale) {
    const int64_t k = codes.dim() - 1, row = k - 1;
    // The stride of a dimension of size 1 may be anything.
    const int64_t k_stride = codes.size(k) <= 1 ? 1 : codes.stride(k);
    const int64_t row_stride = codes.size(row) <= 1 ? 1 : codes.stride(row);
    return {static_cast<const uint8_t*>(codes.const_data_ptr()),
            row_stride,
            k_stride,
            scales.const_data_ptr<float>(),
            scales.stride(row),
            scales.stride(k),
            rows_per_scale};
}

inline GemmOutput output(const Tensor& out, GemmStore store) {
    return {out.mutable_data_ptr(), out.stride(out.dim() - 2), store};
}

inline GemmStore store_of(const Tensor& out) {
    return out.scalar_type() == ScalarType::BFloat16 ? GemmStore::kBf16 : GemmStore::kFloat;
}

}  // namespace dse::gemm
