// Root-mean-square norm on CUDA: the functions of cpu/norm.h, with a stream. rms_norm_again, which adds
// nothing up, has the CPU's bits. Elsewhere the sums of a row have the order of reduce.cuh, and rows are
// added up to grad_weight run by run, then every 32nd run, then those by halves; results lie within the CPU's
// bounds.
//
// Launchers neither allocate nor wait.
#pragma once
#include <cuda_runtime_api.h>

#include "formats/views.h"

namespace dse::cuda {

// out [M, K] of x's type, rstd [M].
void rms_norm(const FloatMatrix& x, const float* weight, float eps, void* out, float* rstd,
              cudaStream_t stream);

// out [M, K] again, from rstd.
void rms_norm_again(const FloatMatrix& x, const float* weight, const float* rstd, void* out,
                    cudaStream_t stream);

// How many runs of rows are added up before their sums are.
int64_t rms_norm_runs(int64_t rows, int64_t columns);

// grad [M, K] of x's type; grad_x [M, K] of that type, grad_weight [K]; sums [rms_norm_runs(M, K), K] is
// working space.
void rms_norm_backward(const FloatMatrix& grad, const FloatMatrix& x, const float* weight, const float* rstd,
                       void* grad_x, float* grad_weight, float* sums, cudaStream_t stream);

}  // namespace dse::cuda
