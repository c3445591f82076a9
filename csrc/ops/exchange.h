// What the exchange family requires of its arguments and how it allocates its results, on every device.
// deepseek_ext/ops/_exchange.py is its caller; users meet create_routing, dispatch, combine and moe_ffn.
//
// T tokens, K choices a token, M rows to be made, H elements a row.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "formats/tiles.h"
#include "formats/views.h"
#include "ops/matrix.h"
#include "ops/permute.h"
#include "ops/quantize.h"

namespace dse::exchange {

inline void check_ranks(const Tensor& indices, int64_t experts_per_rank, int64_t num_ranks) {
    const char* op = "exchange_ranks";
    permute::check_choices(op, "indices", indices);
    DSE_REQUIRE(experts_per_rank >= 1 && experts_per_rank < permute::kMaxChoices, op,
                ": experts_per_rank must be at least 1 and below 2^31, got ", experts_per_rank,
                "; divide the experts by the ranks");
    DSE_REQUIRE(num_ranks >= 1 && num_ranks < permute::kMaxChoices, op,
                ": num_ranks must be at least 1 and below 2^31, got ", num_ranks,
                "; pass the size of the group");
}

inline void check_indices(const int32_t* indices, int64_t count, int64_t num_experts) {
    permute::check_values("create_routing", "indices", indices, count, num_experts,
                          "pass the indices of route, or -1 for a choice that is not here");
}

inline Tensor new_ranks(const Tensor& indices, int64_t num_ranks) {
    return new_tensor(indices, {indices.size(0), std::min(num_ranks, indices.size(1))});
}

// Parts whose rows the order names, or all rows of which are taken in turn. Returns how many there are.
inline int64_t check_pack(const std::vector<Tensor>& parts, const std::optional<Tensor>& rows,
                          int64_t top_k) {
    const char* op = "pack_rows";
    DSE_REQUIRE(parts.size() >= 1 && static_cast<int64_t>(parts.size()) <= kMaxParts, op,
                ": parts must be 1 to ", kMaxParts, " matrices, got ", parts.size(),
                "; pack more in several calls");
    for (const Tensor& part : parts) {
        DSE_REQUIRE(part.dim() == 2 && part.size(0) == parts[0].size(0), op,
                    ": parts must be [T, *] with T = ", parts[0].dim() > 0 ? parts[0].size(0) : 0,
                    " as in the first, got ", describe(part), "; give the same tokens in each");
    }
    if (!rows) return parts[0].size(0);
    permute::check_list(op, "rows", "[M]", *rows);
    permute::check_top_k(op, top_k);
    return rows->size(0);
}

inline PackPart pack_part(const Tensor& x) {
    return {static_cast<const uint8_t*>(x.const_data_ptr()), x.size(0),   x.size(1),
            static_cast<int64_t>(x.element_size()),          x.stride(0), x.stride(1)};
}

inline Tensor new_packed(const Tensor& like, int64_t rows, int64_t width) {
    return new_tensor(like, {rows, width}, ScalarType::Byte);
}

// The layout of packed rows of `columns` elements of dtype, with scales if that is E4M3.
inline PackedRows layout(const Tensor& packed, int64_t columns, ScalarType dtype, bool weighted,
                         int64_t top_k) {
    const bool codes = dtype == ScalarType::Float8_e4m3fn;
    const int64_t size = codes ? 1 : dtype == ScalarType::Float ? 4 : 2;
    return {static_cast<const uint8_t*>(packed.const_data_ptr()), packed.size(0), columns * size,
            codes ? num_tiles(columns) : 0, weighted ? top_k : 0};
}

inline void check_unpack(const Tensor& packed, const Tensor& rows, int64_t top_k, int64_t columns,
                         ScalarType dtype, bool weighted) {
    const char* op = "unpack_rows";
    DSE_REQUIRE(packed.scalar_type() == ScalarType::Byte && packed.dim() == 2 && packed.is_contiguous(), op,
                ": packed must be contiguous uint8 [R, bytes], got ", describe(packed.scalar_type()), " ",
                describe(packed), "; pass what pack_rows made");
    permute::check_list(op, "rows", "[M]", rows);
    permute::check_top_k(op, top_k);
    DSE_REQUIRE(is_plain_float(dtype) || dtype == ScalarType::Float8_e4m3fn, op,
                ": dtype must be float8_e4m3fn, bfloat16, float16 or float32, got ", describe(dtype),
                "; pass that of the rows");
    DSE_REQUIRE(columns >= 0, op, ": columns must not be negative, got ", columns, "; pass the width");
    const int64_t width = layout(packed, columns, dtype, weighted, top_k).width();
    DSE_REQUIRE(packed.size(1) == width, op, ": packed must have rows of ", width, " bytes, got ",
                describe(packed), "; pass the columns, dtype and top_k that were packed");
}

struct Unpacked {
    Tensor rows, scales, weights;
};

inline Unpacked new_unpacked(const Tensor& packed, int64_t count, int64_t columns, ScalarType dtype,
                             bool weighted) {
    const int64_t tiles = dtype == ScalarType::Float8_e4m3fn ? num_tiles(columns) : 0;
    return {new_tensor(packed, {count, columns}, dtype), new_scales(packed, {count, tiles}),
            new_tensor(packed, {weighted ? count : 0}, ScalarType::Float)};
}

}  // namespace dse::exchange
