// Matrix products of E4M3 codes on any GPU from sm_80 on: the functions of cpu/gemm.h plus a stream.
//
//   out[m][n] = sum over 128-deep blocks of K, in order, of
//               (sum of codes_a[m][k] * codes_b[n][k] over the block) * (scale_a * scale_b)
//
// The inner sum is the tensor core's, onto FP32 sums: 16 products at a time, of codes as BF16, which holds
// each of them exactly; or on compute capability 9.0, where codes lie as it needs them, 32 at a time, of
// codes as they are (hopper/gemm.cuh). The outer is one fused multiply-add in FP32 per block. With exact
// inner sums the error is bounded as on the CPU,
//
//   |D - D64| <= (128 + ceil(K/128) + 4) * 2^-24 * sum_k |a_mk b_nk|
//
// Tensor cores truncate their sums: 272 takes the place of 128, and with codes as they are 136 * 2^11.
//
// An element's bits depend on its row of A, its row of B and their scales alone, and on which of the two
// kernels the layout admits, but not on the tile: every tile multiplies the same k in the same order. offs
// stay on the device; ends that descend or pass the last row read and write nothing out of bounds. No
// launcher allocates or waits.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "formats/views.h"

namespace dse::cuda {

void gemm(const GemmProduct& product, cudaStream_t stream);

// Group e owns the rows [offs[e-1], offs[e]) of A and of the result, and its own B. `all` describes all rows
// of A, and the B of group 0. Rows from the last end on are not read and become zero.
void grouped_gemm(const GemmProduct& all, int64_t groups, const int32_t* offs, int64_t offs_stride,
                  int64_t codes_group_stride, int64_t scales_group_stride, cudaStream_t stream);

// Group e owns as many columns of K as it has rows, from a multiple of 128 on (formats/tiles.h), and its own
// result. `all` describes A and B with all columns, and the result of group 0. A group without rows gives
// zero.
void grouped_gemm_wgrad(const GemmProduct& all, int64_t groups, const int32_t* offs, int64_t offs_stride,
                        int64_t out_group_stride, cudaStream_t stream);

}  // namespace dse::cuda
