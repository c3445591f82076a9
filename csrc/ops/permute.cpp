// Schemas of the permute family and its CPU kernels.
#include "ops/permute.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "ops/matrix.h"
#include "ops/parallel.h"

namespace dse::permute {
namespace {

const int32_t* ints(const Tensor& x) { return static_cast<const int32_t*>(x.const_data_ptr()); }
int32_t* new_ints(const Tensor& x) { return static_cast<int32_t*>(x.mutable_data_ptr()); }
float* floats(const Tensor& x) { return static_cast<float*>(x.mutable_data_ptr()); }
const float* floats_or_null(const std::optional<Tensor>& x) {
    return x ? static_cast<const float*>(x->const_data_ptr()) : nullptr;
}

RowOrder row_order(const char* op, const Tensor& rows, int64_t tokens, int64_t top_k) {
    check_rows(op, ints(rows), rows.numel(), tokens, top_k);
    return {ints(rows), rows.size(0), top_k};
}

Slots token_slots(const char* op, const Tensor& slots, int64_t rows) {
    check_slots(op, ints(slots), slots.numel(), rows);
    return {ints(slots), slots.size(0), slots.size(1)};
}

std::tuple<Tensor, Tensor, Tensor> expert_order(const Tensor& indices, int64_t num_experts) {
    check_expert_order(indices, num_experts);
    const Tensor choices = packed(indices);
    check_indices(ints(choices), choices.numel(), num_experts);
    const Order order = new_order(indices, num_experts);
    cpu::expert_order(ints(choices), choices.numel(), num_experts, new_ints(order.rows),
                      new_ints(order.slots), new_ints(order.offs), torch_threads());
    return {order.rows, order.slots, order.offs};
}

Tensor inverse_order(const Tensor& places, int64_t size) {
    check_inverse_order(places, size);
    const Tensor list = packed(places);
    check_places(ints(list), list.numel(), size);
    Tensor result = new_tensor(places, {size});
    check_places_differ(ints(list), cpu::inverse_order(ints(list), list.numel(), size, new_ints(result)));
    return result;
}

std::tuple<Tensor, Tensor> gather_tiles(const Tensor& codes, const Tensor& scales, const Tensor& rows,
                                        int64_t top_k) {
    check_gather_tiles(codes, scales, rows, top_k);
    const Tensor list = packed(rows), source = walkable(codes);
    const RowOrder order = row_order("gather_tiles", list, codes.size(0), top_k);
    Tensor row_codes = new_rows(codes, order.count);
    Tensor row_scales = new_scales(scales, {order.count, scales.size(1)});
    cpu::gather_bytes(byte_matrix(source), order, static_cast<uint8_t*>(row_codes.mutable_data_ptr()),
                      torch_threads());
    cpu::gather_scales(static_cast<const float*>(scales.const_data_ptr()), scales.size(1), scales.stride(0),
                       scales.stride(1), order, floats(row_scales), torch_threads());
    return {row_codes, row_scales};
}

Tensor gather_rows(const Tensor& x, const Tensor& rows, int64_t top_k, const std::optional<Tensor>& weights) {
    check_gather_rows(x, rows, top_k, weights);
    const Tensor list = packed(rows), source = walkable(x);
    const RowOrder order = row_order("gather_rows", list, x.size(0), top_k);
    Tensor out = new_rows(x, order.count);
    if (weights) {
        const std::optional<Tensor> factors = packed(weights);
        cpu::gather_weighted(float_matrix(source), floats_or_null(factors), order, out.mutable_data_ptr(),
                             torch_threads());
    } else {
        cpu::gather_bytes(byte_matrix(source), order, static_cast<uint8_t*>(out.mutable_data_ptr()),
                          torch_threads());
    }
    return out;
}

Tensor combine_rows(const Tensor& rows_out, const Tensor& slots, const std::optional<Tensor>& weights,
                    const std::optional<Tensor>& residual) {
    check_combine_rows(rows_out, slots, weights, residual);
    const Tensor table = packed(slots), source = walkable(rows_out);
    const Slots places = token_slots("combine_rows", table, rows_out.size(0));
    const std::optional<Tensor> factors = packed(weights);
    std::optional<Tensor> added;
    FloatMatrix added_matrix{};
    if (residual) {
        added = walkable(*residual);
        added_matrix = float_matrix(*added);
    }
    Tensor out = new_rows(rows_out, places.tokens);
    cpu::combine_rows(float_matrix(source), places, floats_or_null(factors), added_matrix,
                      out.mutable_data_ptr(), torch_threads());
    return out;
}

Tensor row_dots(const Tensor& x, const Tensor& rows_out, const Tensor& slots) {
    check_row_dots(x, rows_out, slots);
    const Tensor table = packed(slots), tokens = walkable(x), source = walkable(rows_out);
    const Slots places = token_slots("row_dots", table, rows_out.size(0));
    Tensor out = new_dots(slots);
    cpu::row_dots(float_matrix(tokens), float_matrix(source), places, floats(out), torch_threads());
    return out;
}

}  // namespace
}  // namespace dse::permute

STABLE_TORCH_LIBRARY_FRAGMENT(deepseek_ext, m) {
    m.def("expert_order(Tensor indices, SymInt num_experts) -> (Tensor rows, Tensor slots, Tensor offs)");
    m.def("inverse_order(Tensor places, SymInt size) -> Tensor");
    m.def(
        "gather_tiles(Tensor codes, Tensor scales, Tensor rows, SymInt top_k) -> "
        "(Tensor codes, Tensor scales)");
    m.def("gather_rows(Tensor x, Tensor rows, SymInt top_k, Tensor? weights=None) -> Tensor");
    m.def(
        "combine_rows(Tensor rows_out, Tensor slots, Tensor? weights=None, Tensor? residual=None) -> Tensor");
    m.def("row_dots(Tensor x, Tensor rows_out, Tensor slots) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(deepseek_ext, CPU, m) {
    m.impl("expert_order", TORCH_BOX(&dse::permute::expert_order));
    m.impl("inverse_order", TORCH_BOX(&dse::permute::inverse_order));
    m.impl("gather_tiles", TORCH_BOX(&dse::permute::gather_tiles));
    m.impl("gather_rows", TORCH_BOX(&dse::permute::gather_rows));
    m.impl("combine_rows", TORCH_BOX(&dse::permute::combine_rows));
    m.impl("row_dots", TORCH_BOX(&dse::permute::row_dots));
}
