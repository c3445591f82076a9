// What the permute family requires of its arguments and how it allocates its results, on every device. The
// fakes in deepseek_ext/ops/permute.py state the same requirements in the same words; a test compares the
// two.
//
// T tokens, K choices a token, M rows in expert order, H the width of a row.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "cpu/permute.h"
#include "formats/tiles.h"
#include "formats/views.h"
#include "ops/quantize.h"
#include "ops/require.h"

namespace dse::permute {

// Positions are int32.
inline constexpr int64_t kMaxChoices = int64_t{1} << 31;

inline void check_choices(const char* op, const char* name, const Tensor& x) {
    require_int32(op, name, x);
    DSE_REQUIRE(x.dim() == 2 && x.size(1) >= 1, op, ": ", name, " must be [T, K] with K >= 1, got shape ",
                describe(x), "; give a row for each token");
    DSE_REQUIRE(x.numel() < kMaxChoices, op, ": ", name, " must hold fewer than 2^31 choices, got shape ",
                describe(x), "; split the tokens");
}

inline void check_list(const char* op, const char* name, const char* layout, const Tensor& x) {
    require_int32(op, name, x);
    DSE_REQUIRE(x.dim() == 1, op, ": ", name, " must be ", layout, ", got shape ", describe(x),
                "; flatten it");
}

inline void check_top_k(const char* op, int64_t top_k) {
    DSE_REQUIRE(top_k >= 1, op, ": top_k must be at least 1, got ", top_k, "; pass the K of the indices");
}

inline void check_matrix(const char* op, const char* name, const char* layout, const Tensor& x) {
    DSE_REQUIRE(x.dim() == 2, op, ": ", name, " must be ", layout, ", got shape ", describe(x),
                "; flatten the leading dimensions");
    require_float(op, name, x);
}

inline void check_weights(const char* op, const std::optional<Tensor>& weights,
                          const std::vector<int64_t>& wanted) {
    if (!weights) return;
    require_float32(op, "weights", *weights);
    DSE_REQUIRE(shape_of(*weights) == wanted, op, ": weights must be [T, K] = ", describe(wanted), ", got ",
                describe(*weights), "; give one for each choice of a token");
}

// A matrix beside another one: of its dtype and of `wanted` shape.
inline void check_beside(const char* op, const char* name, const Tensor& x, const char* layout,
                         const std::vector<int64_t>& wanted, const char* of_name, const Tensor& of) {
    DSE_REQUIRE(x.scalar_type() == of.scalar_type(), op, ": ", name, " must be ", describe(of.scalar_type()),
                " like ", of_name, ", got ", describe(x.scalar_type()), "; convert one of them");
    DSE_REQUIRE(shape_of(x) == wanted, op, ": ", name, " must be ", layout, " = ", describe(wanted), ", got ",
                describe(x), "; pass the one that belongs to these tokens");
}

inline void check_expert_order(const Tensor& indices, int64_t num_experts) {
    check_choices("expert_order", "indices", indices);
    DSE_REQUIRE(num_experts >= 1, "expert_order: num_experts must be at least 1, got ", num_experts,
                "; pass the number of experts that the indices choose from");
}

inline void check_inverse_order(const Tensor& places, int64_t size) {
    check_list("inverse_order", "places", "[N]", places);
    DSE_REQUIRE(size >= 0, "inverse_order: size must not be negative, got ", size,
                "; pass the number of places");
}

inline void check_gather_tiles(const Tensor& codes, const Tensor& scales, const Tensor& rows, int64_t top_k) {
    const char* op = "gather_tiles";
    DSE_REQUIRE(codes.scalar_type() == ScalarType::Float8_e4m3fn, op, ": codes must be float8_e4m3fn, got ",
                describe(codes.scalar_type()), "; make them with quantize_tiles");
    DSE_REQUIRE(codes.dim() == 2, op, ": codes must be [T, H], got shape ", describe(codes),
                "; flatten the leading dimensions");
    require_float32(op, "scales", scales, "pass the scales that came with codes");
    const std::vector<int64_t> wanted{codes.size(0), num_tiles(codes.size(1))};
    DSE_REQUIRE(shape_of(scales) == wanted, op, ": scales must be [T, ceil(H/128)] = ", describe(wanted),
                ", got ", describe(scales), "; pass the scales that came with codes");
    check_list(op, "rows", "[M]", rows);
    check_top_k(op, top_k);
}

inline void check_gather_rows(const Tensor& x, const Tensor& rows, int64_t top_k,
                              const std::optional<Tensor>& weights) {
    check_matrix("gather_rows", "x", "[T, H]", x);
    check_list("gather_rows", "rows", "[M]", rows);
    check_top_k("gather_rows", top_k);
    check_weights("gather_rows", weights, {x.size(0), top_k});
}

inline void check_combine_rows(const Tensor& rows_out, const Tensor& slots,
                               const std::optional<Tensor>& weights, const std::optional<Tensor>& residual) {
    const char* op = "combine_rows";
    check_matrix(op, "rows_out", "[M, H]", rows_out);
    check_choices(op, "slots", slots);
    check_weights(op, weights, shape_of(slots));
    if (residual)
        check_beside(op, "residual", *residual, "[T, H]", {slots.size(0), rows_out.size(1)}, "rows_out",
                     rows_out);
}

inline void check_row_dots(const Tensor& x, const Tensor& rows_out, const Tensor& slots) {
    check_matrix("row_dots", "rows_out", "[M, H]", rows_out);
    check_choices("row_dots", "slots", slots);
    check_beside("row_dots", "x", x, "[T, H]", {slots.size(0), rows_out.size(1)}, "rows_out", rows_out);
}

// Values, where the host can read them: so no kernel leaves its memory. `remedy` says where right ones come
// from.
inline void check_values(const char* op, const char* name, const int32_t* values, int64_t count, int64_t end,
                         const char* remedy) {
    const int64_t at = cpu::first_outside(values, count, end);
    DSE_REQUIRE(at < 0, op, ": ", name, " must lie in [-1, ", end, "), got ", values[at], " at position ", at,
                "; ", remedy);
}

inline void check_indices(const int32_t* indices, int64_t count, int64_t num_experts) {
    check_values("expert_order", "indices", indices, count, num_experts,
                 "pass the indices of route, or -1 for a choice that is not here");
}

inline void check_places(const int32_t* places, int64_t count, int64_t size) {
    check_values("inverse_order", "places", places, count, size, "pass rows or slots of expert_order");
}

// `twice`: what cpu::inverse_order returns.
inline void check_places_differ(const int32_t* places, int64_t twice) {
    DSE_REQUIRE(twice < 0, "inverse_order: places must not name a place twice, got ", places[twice],
                " again at position ", twice, "; pass rows or slots of expert_order");
}

inline void check_rows(const char* op, const int32_t* rows, int64_t count, int64_t tokens, int64_t top_k) {
    check_values(op, "rows", rows, count, tokens * std::min(top_k, kMaxChoices),
                 "pass the rows that expert_order made for these tokens");
}

inline void check_slots(const char* op, const int32_t* slots, int64_t count, int64_t rows) {
    check_values(op, "slots", slots, count, rows, "pass the slots that expert_order made for these rows");
}

// A walkable matrix as bytes.
inline ByteMatrix byte_matrix(const Tensor& x) {
    const int64_t size = x.element_size();
    return {static_cast<const uint8_t*>(x.const_data_ptr()), x.size(0), x.size(1) * size, x.stride(0) * size};
}

struct Order {
    Tensor rows, slots, offs;
};

inline Order new_order(const Tensor& indices, int64_t num_experts) {
    return {new_tensor(indices, {indices.numel()}), new_tensor(indices, shape_of(indices)),
            new_tensor(indices, {num_experts})};
}

// [rows, columns of x], of x's dtype.
inline Tensor new_rows(const Tensor& x, int64_t rows) { return new_tensor(x, {rows, x.size(1)}); }

inline Tensor new_dots(const Tensor& slots) { return new_tensor(slots, shape_of(slots), ScalarType::Float); }

}  // namespace dse::permute
