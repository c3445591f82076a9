// The optimizer family on the CPU: one AdamW step over many tensors in one pass. Every tier gives the same
// bits (which NaN a NaN becomes excepted).
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/parallel.h"
#include "formats/views.h"

namespace dse::cpu {

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
