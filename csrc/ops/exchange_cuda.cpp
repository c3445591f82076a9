// CUDA registration of the exchange family.
#include <tuple>

#include "cuda/exchange.cuh"
#include "ops/cuda.h"
#include "ops/exchange.h"

namespace dse::exchange {
namespace {

RowOrder row_order(CudaCall& call, const char* op, const Tensor& rows, int64_t tokens, int64_t top_k) {
    call.check_values<int32_t>(rows, [&](const int32_t* values, int64_t count) {
        permute::check_rows(op, values, count, tokens, top_k);
    });
    return {call.in<int32_t>(rows), rows.size(0), top_k};
}

Tensor exchange_ranks(const Tensor& indices, int64_t experts_per_rank, int64_t num_ranks) {
    check_ranks(indices, experts_per_rank, num_ranks);
    CudaCall call("exchange_ranks", indices);
    const Tensor choices = packed(indices);
    call.check_values<int32_t>(choices, [&](const int32_t* values, int64_t count) {
        check_indices(values, count, experts_per_rank * num_ranks);
    });
    const Tensor ranks = new_ranks(indices, num_ranks);
    cuda::exchange_ranks({call.in<int32_t>(choices), indices.size(0), indices.size(1)}, experts_per_rank,
                         num_ranks, ranks.size(1), call.out<int32_t>(ranks), call.stream());
    call.finish();
    return ranks;
}

Tensor pack_rows(const std::vector<Tensor>& parts, const std::optional<Tensor>& rows, int64_t top_k) {
    RowOrder order{nullptr, check_pack(parts, rows, top_k), 1};
    CudaCall call("pack_rows", parts[0]);
    const std::optional<Tensor> list = packed(rows);
    if (list) order = row_order(call, "pack_rows", *list, parts[0].size(0), top_k);
    PackParts all{};
    std::vector<Tensor> sources;
    for (const Tensor& part : parts) {
        // Only elements of 4 bytes may lie apart.
        const bool adjacent = part.size(1) <= 1 || part.stride(1) == 1;
        sources.push_back(adjacent || part.element_size() == 4 ? part : torch::stable::contiguous(part));
        all.part[all.count++] = pack_part(call.in(sources.back()));
    }
    Tensor out = new_packed(parts[0], order.count, all.width());
    cuda::pack_rows(all, order, call.out<uint8_t>(out), call.stream());
    call.finish();
    return out;
}

std::tuple<Tensor, Tensor, Tensor> unpack_rows(const Tensor& packed_rows, const Tensor& rows, int64_t top_k,
                                               int64_t columns, ScalarType dtype, bool weighted) {
    check_unpack(packed_rows, rows, top_k, columns, dtype, weighted);
    CudaCall call("unpack_rows", packed_rows);
    const Tensor list = packed(rows);
    const RowOrder order = row_order(call, "unpack_rows", list, packed_rows.size(0), top_k);
    const Unpacked out = new_unpacked(packed_rows, order.count, columns, dtype, weighted);
    cuda::unpack_rows(layout(call.in(packed_rows), columns, dtype, weighted, top_k), order,
                      call.out<uint8_t>(out.rows), scale_matrix(call.out(out.scales)),
                      call.out<float>(out.weights), call.stream());
    call.finish();
    return {out.rows, out.scales, out.weights};
}

}  // namespace
}  // namespace dse::exchange

DSE_CUDA_KERNELS(m) {
    m.impl("exchange_ranks", TORCH_BOX(&dse::exchange::exchange_ranks));
    m.impl("pack_rows", TORCH_BOX(&dse::exchange::pack_rows));
    m.impl("unpack_rows", TORCH_BOX(&dse::exchange::unpack_rows));
}
