#include "cpu/exchange.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "cpu/intrinsics.h"
#include "formats/exchange.h"

#define DSE_BODY_WITHOUT_BF16
#define DSE_BODY "cpu/exchange.inc"
#include "cpu/foreach_isa.h"

namespace dse::cpu {

void exchange_ranks(const Slots& indices, int64_t experts_per_rank, int64_t num_ranks, int64_t width,
                    int32_t* ranks, const ParallelFor& parallel) {
    parallel(indices.tokens, rows_per_thread(2 * indices.top_k * width), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t)
            ranks_of_token(indices, t, experts_per_rank, num_ranks, width, ranks + t * width);
    });
}

void pack_rows(const PackParts& parts, const RowOrder& order, uint8_t* out, const ParallelFor& parallel) {
    DSE_SELECT(pack_rows)(parts, order, out, parallel);
}

void unpack_rows(const PackedRows& packed, const RowOrder& order, uint8_t* payload, const ScaleMatrix& scales,
                 float* weights, const ParallelFor& parallel) {
    DSE_SELECT(unpack_rows)(packed, order, payload, scales, weights, parallel);
}

}  // namespace dse::cpu
