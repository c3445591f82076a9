// Cross-entropy of rows of logits on the CPU: plain functions over pointers and strides.
//
// Of a row x [V] with target t, in FP32: m = max(x), s = sum(exp(x - m)), loss = log(s) + m - x_t, and the
// gradient exp(x - m) / s - [v == t], rounded once. A row whose target is kIgnoredTarget has loss and
// gradient zero. The same bits on every tier, but for the logarithm, and for any number of threads; a row's
// sum is that of cpu/swiglu.h.
#pragma once
#include "cpu/quantize.h"

namespace dse::cpu {

// logits [M, V] become their gradient; losses [M], choices [M] the first largest of each row.
void cross_entropy(const FloatMatrix& logits, const int64_t* targets, float* losses, int64_t* choices,
                   const ParallelFor& parallel);

}  // namespace dse::cpu
