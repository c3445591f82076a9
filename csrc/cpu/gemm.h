// Matrix products of E4M3 codes on the CPU: out = A B^T, one product or one per group of rows.
//
//   out[m][n] = sum over 128-deep blocks of K, in order, of
//               (sum of codes_a[m][k] * codes_b[n][k] over the block) * (scale_a * scale_b)
//
// all in FP32; |D - D64| <= (128 + ceil(K/128) + 4) * 2^-24 * sum_k |a_mk b_nk| before the rounding to the
// output. Work is divided over outputs only, so the bits depend on no thread count. A row's bits depend on no
// other row, and on the number of rows only through the choice between the two kernels (see use_dot_kernel).
#pragma once
#include <cstdint>

#include "cpu/parallel.h"
#include "formats/tiles.h"
#include "formats/views.h"

namespace dse::cpu {

void gemm(const GemmProduct& product, const ParallelFor& parallel_for);

// Group e owns the rows [offs[e-1], offs[e]) of A and of the result, and its own B. `all` describes all rows
// of A, and the B of group 0. Rows from the last end on are not read and become zero.
void grouped_gemm(const GemmProduct& all, int64_t groups, const int32_t* offs, int64_t offs_stride,
                  int64_t codes_group_stride, int64_t scales_group_stride, const ParallelFor& parallel_for);

// Group e owns as many columns of K as it has rows, from a multiple of 128 on (formats/tiles.h), and its own
// result. `all` describes A and B with all columns, and the result of group 0. A group without rows gives
// zero.
void grouped_gemm_wgrad(const GemmProduct& all, int64_t groups, const int32_t* offs, int64_t offs_stride,
                        int64_t out_group_stride, const ParallelFor& parallel_for);

}  // namespace dse::cpu
