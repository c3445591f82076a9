// Cross-entropy of rows of logits on CUDA: the function of cpu/cross_entropy.h, with a stream. A row's sum
// has the order of reduce.cuh and the logarithm is CUDA's (off by 1 ulp at most), so losses and gradients lie
// within the CPU's bounds without having its bits; choices are the same.
//
// The launcher neither allocates nor waits. A target that is no class of the row counts as the nearest one.
#pragma once
#include <cuda_runtime_api.h>

#include "formats/views.h"

namespace dse::cuda {

// logits [M, V] become their gradient; losses [M], choices [M] the first largest of each row.
void cross_entropy(const FloatMatrix& logits, const int64_t* targets, float* losses, int64_t* choices,
                   cudaStream_t stream);

}  // namespace dse::cuda
