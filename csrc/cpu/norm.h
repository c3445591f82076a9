// Root-mean-square norm on the CPU: plain functions over pointers and strides.
//
// x [M, K], weight [K], everything in FP32:
//
//     rstd        = 1 / sqrt(sum(x^2) / K + eps), one for each row
//     normed      = x * rstd
//     out         = normed * weight
//     along       = sum(grad * normed * weight) / K, one for each row
//     grad_x      = (grad * weight - normed * along) * rstd
//     grad_weight = sum over the rows of grad * normed
//
// Results are rounded once. The same bits on every tier and for any number of threads: a row's sum is that
// of cpu/swiglu.h; rows are added up to grad_weight in runs of 64, one after the other, and so are the runs.
#pragma once
#include "cpu/quantize.h"

namespace dse::cpu {

// out [M, K] of x's type, rstd [M].
void rms_norm(const FloatMatrix& x, const float* weight, float eps, void* out, float* rstd,
              const ParallelFor& parallel);

// out [M, K] again, from rstd.
void rms_norm_again(const FloatMatrix& x, const float* weight, const float* rstd, void* out,
                    const ParallelFor& parallel);

// grad [M, K] of x's type; grad_x [M, K] of that type, grad_weight [K].
void rms_norm_backward(const FloatMatrix& grad, const FloatMatrix& x, const float* weight, const float* rstd,
                       void* grad_x, float* grad_weight, const ParallelFor& parallel);

}  // namespace dse::cpu
