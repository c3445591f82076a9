// Schemas of the exchange family and its CPU kernels.
#include "ops/exchange.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/exchange.h"
#include "ops/parallel.h"

namespace dse::exchange {
namespace {

const int32_t* ints(const Tensor& x) { return static_cast<const int32_t*>(x.const_data_ptr()); }
uint8_t* bytes(const Tensor& x) { return static_cast<uint8_t*>(x.mutable_data_ptr()); }

Tensor exchange_ranks(const Tensor& indices, int64_t experts_per_rank, int64_t num_ranks) {
    check_ranks(indices, experts_per_rank, num_ranks);
    const Tensor choices = packed(indices);
    check_indices(ints(choices), choices.numel(), experts_per_rank * num_ranks);
    const Tensor ranks = new_ranks(indices, num_ranks);
    cpu::exchange_ranks({ints(choices), indices.size(0), indices.size(1)}, experts_per_rank, num_ranks,
                        ranks.size(1), static_cast<int32_t*>(ranks.mutable_data_ptr()), torch_threads());
    return ranks;
}

Tensor pack_rows(const std::vector<Tensor>& parts, const std::optional<Tensor>& rows, int64_t top_k) {
    RowOrder order{nullptr, check_pack(parts, rows, top_k), 1};
    std::optional<Tensor> list = packed(rows);
    if (list) {
        permute::check_rows("pack_rows", ints(*list), list->numel(), parts[0].size(0), top_k);
        order = {ints(*list), list->size(0), top_k};
    }
    PackParts all{};
    for (const Tensor& part : parts) all.part[all.count++] = pack_part(part);
    Tensor out = new_packed(parts[0], order.count, all.width());
    cpu::pack_rows(all, order, bytes(out), torch_threads());
    return out;
}

std::tuple<Tensor, Tensor, Tensor> unpack_rows(const Tensor& packed_rows, const Tensor& rows, int64_t top_k,
                                               int64_t columns, ScalarType dtype, bool weighted) {
    check_unpack(packed_rows, rows, top_k, columns, dtype, weighted);
    const Tensor list = packed(rows);
    permute::check_rows("unpack_rows", ints(list), list.numel(), packed_rows.size(0), top_k);
    const Unpacked out = new_unpacked(packed_rows, list.size(0), columns, dtype, weighted);
    cpu::unpack_rows(layout(packed_rows, columns, dtype, weighted, top_k), {ints(list), list.size(0), top_k},
                     bytes(out.rows), scale_matrix(out.scales),
                     static_cast<float*>(out.weights.mutable_data_ptr()), torch_threads());
    return {out.rows, out.scales, out.weights};
}

}  // namespace
}  // namespace dse::exchange

STABLE_TORCH_LIBRARY_FRAGMENT(deepseek_ext, m) {
    m.def("exchange_ranks(Tensor indices, SymInt experts_per_rank, SymInt num_ranks) -> Tensor");
    m.def("pack_rows(Tensor[] parts, Tensor? rows, SymInt top_k) -> Tensor");
    m.def(
        "unpack_rows(Tensor packed, Tensor rows, SymInt top_k, SymInt columns, ScalarType dtype, "
        "bool weighted) -> (Tensor rows, Tensor scales, Tensor weights)");
}

STABLE_TORCH_LIBRARY_IMPL(deepseek_ext, CPU, m) {
    m.impl("exchange_ranks", TORCH_BOX(&dse::exchange::exchange_ranks));
    m.impl("pack_rows", TORCH_BOX(&dse::exchange::pack_rows));
    m.impl("unpack_rows", TORCH_BOX(&dse::exchange::unpack_rows));
}
