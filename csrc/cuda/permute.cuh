// The permute family on CUDA: what cpu/permute.h says, with a stream and with memory to work in, which the
// caller allocates. The bits are the CPU's (which NaN a NaN becomes excepted), sums of rows included.
//
// T tokens, K choices a token, M rows in expert order. A number in `indices`, `rows`, `slots` or `places`
// that lies outside its range counts as -1, which means "none". Launchers neither allocate nor wait. Nothing
// is launched for an empty result.
#pragma once
#include <cuda_runtime_api.h>

#include "formats/views.h"

namespace dse::cuda {

// How many int32 expert_order() needs to work in.
int64_t expert_order_workspace(int64_t count, int64_t num_experts);

// The stable counting sort of `count` = T * K choices by expert: rows [count], slots [count], and the ends of
// the experts' rows, offs [num_experts].
void expert_order(const int32_t* indices, int64_t count, int64_t num_experts, int32_t* rows, int32_t* slots,
                  int32_t* offs, int32_t* workspace, cudaStream_t stream);

// result[places[i]] = i, and -1 where no i leads; the last i where several do.
void inverse_order(const int32_t* places, int64_t count, int64_t size, int32_t* result, cudaStream_t stream);

// out [count, width]: the rows in order, zeros for row -1.
void gather_bytes(const ByteMatrix& x, const RowOrder& order, uint8_t* out, cudaStream_t stream);

// out [count, columns] likewise, of scales of `tokens` tokens, ones for row -1.
void gather_scales(const float* scales, int64_t tokens, int64_t columns, int64_t row_stride,
                   int64_t column_stride, const RowOrder& order, const ScaleMatrix& out, cudaStream_t stream);

// out [count, columns] in x's type: each row times weights[rows[i]], rounded to nearest even.
void gather_weighted(const FloatMatrix& x, const float* weights, const RowOrder& order, void* out,
                     cudaStream_t stream);

// out [T, columns] in x's type: the FP32 sum, from zero and in order of k, of a token's rows of x, each times
// its weight if `weights` [T, K] is not null; then its row of `residual`, of x's type, if that has data.
void combine_rows(const FloatMatrix& x, const Slots& slots, const float* weights, const FloatMatrix& residual,
                  void* out, cudaStream_t stream);

// out [T, K]: the inner product of a token's row of x with each of its rows of y, of x's type; 0 where there
// is none. Summed in FP32: error at most (columns / 64 + 7) * 2^-24 * sum |x y|, to first order.
void row_dots(const FloatMatrix& x, const FloatMatrix& y, const Slots& slots, float* out,
              cudaStream_t stream);

}  // namespace dse::cuda
