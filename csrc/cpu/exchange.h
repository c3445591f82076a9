// The exchange family on the CPU: what happens to rows before they leave for other ranks and after they have
// arrived. Everything is copied bit by bit, so one body serves every tier.
//
// T tokens, K choices a token. The values of `rows` must have been checked with first_outside().
#pragma once
#include "cpu/parallel.h"
#include "formats/views.h"

namespace dse::cpu {

// ranks [T, width]: the numbers choice / experts_per_rank of a token's choices >= 0, each once and ascending,
// those below num_ranks alone; then -1. width: min(num_ranks, K).
void exchange_ranks(const Slots& indices, int64_t experts_per_rank, int64_t num_ranks, int64_t width,
                    int32_t* ranks, const ParallelFor& parallel);

// out [count, parts.width()]: row order.token(i) of every part side by side, zeros for row -1 and between
// parts. With order.rows null, row i.
void pack_rows(const PackParts& parts, const RowOrder& order, uint8_t* out, const ParallelFor& parallel);

// Row i of the results is that of packed row r = order.token(i): payload [count, packed.payload] bytes,
// scales, and of its weights number order.rows[i] % top_k, which must be there if packed.weights is not 0.
// For row -1: zeros, scales 1.
void unpack_rows(const PackedRows& packed, const RowOrder& order, uint8_t* payload, const ScaleMatrix& scales,
                 float* weights, const ParallelFor& parallel);

}  // namespace dse::cpu
