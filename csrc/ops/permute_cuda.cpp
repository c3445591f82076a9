// CUDA registration of the permute family.
#include <tuple>
#include <vector>

#include "cuda/permute.cuh"
#include "ops/cuda.h"
#include "ops/matrix.h"
#include "ops/permute.h"

namespace dse::permute {
namespace {

RowOrder row_order(CudaCall& call, const char* op, const Tensor& rows, int64_t tokens, int64_t top_k) {
    call.check_values<int32_t>(
        rows, [&](const int32_t* values, int64_t count) { check_rows(op, values, count, tokens, top_k); });
    return {call.in<int32_t>(rows), rows.size(0), top_k};
}

Slots token_slots(CudaCall& call, const char* op, const Tensor& slots, int64_t rows) {
    call.check_values<int32_t>(
        slots, [&](const int32_t* values, int64_t count) { check_slots(op, values, count, rows); });
    return {call.in<int32_t>(slots), slots.size(0), slots.size(1)};
}

const float* weights_or_null(CudaCall& call, const std::optional<Tensor>& weights) {
    return weights ? call.in<float>(*weights) : nullptr;
}

std::tuple<Tensor, Tensor, Tensor> expert_order(const Tensor& indices, int64_t num_experts) {
    check_expert_order(indices, num_experts);
    CudaCall call("expert_order", indices);
    const Tensor choices = packed(indices);
    call.check_values<int32_t>(
        choices, [&](const int32_t* values, int64_t count) { check_indices(values, count, num_experts); });
    const int64_t count = choices.numel();
    const Order order = new_order(indices, num_experts);
    const Tensor workspace = new_tensor(indices, {cuda::expert_order_workspace(count, num_experts)});
    cuda::expert_order(call.in<int32_t>(choices), count, num_experts, call.out<int32_t>(order.rows),
                       call.out<int32_t>(order.slots), call.out<int32_t>(order.offs),
                       call.scratch<int32_t>(workspace), call.stream());
    call.finish();
    return {order.rows, order.slots, order.offs};
}

Tensor inverse_order(const Tensor& places, int64_t size) {
    check_inverse_order(places, size);
    CudaCall call("inverse_order", places);
    const Tensor list = packed(places);
    call.check_values<int32_t>(list, [&](const int32_t* values, int64_t count) {
        check_places(values, count, size);
        std::vector<int32_t> result(size);
        check_places_differ(values, cpu::inverse_order(values, count, size, result.data()));
    });
    Tensor result = new_tensor(places, {size});
    cuda::inverse_order(call.in<int32_t>(list), list.numel(), size, call.out<int32_t>(result), call.stream());
    call.finish();
    return result;
}

std::tuple<Tensor, Tensor> gather_tiles(const Tensor& codes, const Tensor& scales, const Tensor& rows,
                                        int64_t top_k) {
    check_gather_tiles(codes, scales, rows, top_k);
    CudaCall call("gather_tiles", codes);
    const Tensor list = packed(rows), source = walkable(codes);
    const RowOrder order = row_order(call, "gather_tiles", list, codes.size(0), top_k);
    Tensor row_codes = new_rows(codes, order.count);
    Tensor row_scales = new_scales(scales, {order.count, scales.size(1)});
    cuda::gather_bytes(byte_matrix(call.in(source)), order, call.out<uint8_t>(row_codes), call.stream());
    cuda::gather_scales(call.in<float>(scales), scales.size(0), scales.size(1), scales.stride(0),
                        scales.stride(1), order, scale_matrix(call.out(row_scales)), call.stream());
    call.finish();
    return {row_codes, row_scales};
}

Tensor gather_rows(const Tensor& x, const Tensor& rows, int64_t top_k, const std::optional<Tensor>& weights) {
    check_gather_rows(x, rows, top_k, weights);
    CudaCall call("gather_rows", x);
    const Tensor list = packed(rows), source = walkable(x);
    const RowOrder order = row_order(call, "gather_rows", list, x.size(0), top_k);
    Tensor out = new_rows(x, order.count);
    if (weights) {
        const std::optional<Tensor> factors = packed(weights);
        cuda::gather_weighted(float_matrix(call.in(source)), weights_or_null(call, factors), order,
                              call.out<uint8_t>(out), call.stream());
        call.finish();
    } else {
        cuda::gather_bytes(byte_matrix(call.in(source)), order, call.out<uint8_t>(out), call.stream());
        call.finish();
    }
    return out;
}

Tensor combine_rows(const Tensor& rows_out, const Tensor& slots, const std::optional<Tensor>& weights,
                    const std::optional<Tensor>& residual) {
    check_combine_rows(rows_out, slots, weights, residual);
    CudaCall call("combine_rows", rows_out);
    const Tensor table = packed(slots), source = walkable(rows_out);
    const Slots places = token_slots(call, "combine_rows", table, rows_out.size(0));
    const std::optional<Tensor> factors = packed(weights);
    std::optional<Tensor> added;
    FloatMatrix added_matrix{};
    if (residual) {
        added = walkable(*residual);
        added_matrix = float_matrix(call.in(*added));
    }
    Tensor out = new_rows(rows_out, places.tokens);
    cuda::combine_rows(float_matrix(call.in(source)), places, weights_or_null(call, factors), added_matrix,
                       call.out<uint8_t>(out), call.stream());
    call.finish();
    return out;
}

Tensor row_dots(const Tensor& x, const Tensor& rows_out, const Tensor& slots) {
    check_row_dots(x, rows_out, slots);
    CudaCall call("row_dots", rows_out);
    const Tensor table = packed(slots), tokens = walkable(x), source = walkable(rows_out);
    const Slots places = token_slots(call, "row_dots", table, rows_out.size(0));
    Tensor out = new_dots(slots);
    cuda::row_dots(float_matrix(call.in(tokens)), float_matrix(call.in(source)), places, call.out<float>(out),
                   call.stream());
    call.finish();
    return out;
}

}  // namespace
}  // namespace dse::permute

DSE_CUDA_KERNELS(m) {
    m.impl("expert_order", TORCH_BOX(&dse::permute::expert_order));
    m.impl("inverse_order", TORCH_BOX(&dse::permute::inverse_order));
    m.impl("gather_tiles", TORCH_BOX(&dse::permute::gather_tiles));
    m.impl("gather_rows", TORCH_BOX(&dse::permute::gather_rows));
    m.impl("combine_rows", TORCH_BOX(&dse::permute::combine_rows));
    m.impl("row_dots", TORCH_BOX(&dse::permute::row_dots));
}
