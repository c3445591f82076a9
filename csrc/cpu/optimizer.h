// The optimizer family on the CPU: one AdamW step over many tensors in one pass. Every tier gives the same
// bits (which NaN a NaN becomes excepted).
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/parallel.h"

namespace dse::cpu {

// The numbers of a step, each computed in double precision and rounded once.
struct AdamwConstants {
    float grad_scale;
    float beta1, one_minus_beta1;
    float beta2, one_minus_beta2;
    float root_factor;  // 1 / sqrt(1 - beta2^step)
    float eps;
    float decay;  // 1 - lr * weight_decay
    float rate;   // lr / (1 - beta1^step)
};

// Moments: FP32, or BF16 where the flag says so.
struct AdamwPointers {
    float* param;
    const float* grad;
    void* exp_avg;
    void* exp_avg_sq;
};

struct AdamwTensor {
    AdamwPointers at;
    bool bf16_exp_avg, bf16_exp_avg_sq;
    int64_t count;
    // Dimensions and strides (of param, grad, exp_avg, exp_avg_sq; in elements) where the four do not lie in
    // memory alike; none where element i of each is simply i places behind the first.
    std::vector<int64_t> sizes;
    std::vector<int64_t> strides[4];
};

void adamw_step(const std::vector<AdamwTensor>& tensors, const AdamwConstants& constants,
                const ParallelFor& parallel);

}  // namespace dse::cpu
