// The optimizer family on CUDA: one AdamW step over many tensors, with the CPU's bits (which NaN a NaN
// becomes excepted).
//
// The launcher neither allocates nor waits: the tensors' addresses travel as the kernel's arguments.
#pragma once
#include <cuda_runtime_api.h>

#include <vector>

#include "formats/views.h"

namespace dse::cuda {

// Element i of each of the four is i places behind the first.
struct AdamwTensor {
    AdamwPointers at;
    bool bf16_exp_avg, bf16_exp_avg_sq;
    int64_t count;
};

void adamw_step(const std::vector<AdamwTensor>& tensors, const AdamwConstants& constants,
                cudaStream_t stream);

}  // namespace dse::cuda
