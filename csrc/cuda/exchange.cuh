// The exchange family on CUDA: what cpu/exchange.h says, with a stream. The bits are the CPU's. A number in
// `rows` that lies outside its range counts as -1. Nothing is launched for an empty result.
//
// What has arrived was written by other devices, so no kernel reads it through the read-only cache
// (ld.global.nc), which need not see their writes.
#pragma once
#include <cuda_runtime_api.h>

#include "formats/views.h"

namespace dse::cuda {

void exchange_ranks(const Slots& indices, int64_t experts_per_rank, int64_t num_ranks, int64_t width,
                    int32_t* ranks, cudaStream_t stream);

void pack_rows(const PackParts& parts, const RowOrder& order, uint8_t* out, cudaStream_t stream);

void unpack_rows(const PackedRows& packed, const RowOrder& order, uint8_t* payload, const ScaleMatrix& scales,
                 float* weights, cudaStream_t stream);

}  // namespace dse::cuda
