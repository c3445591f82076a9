// torch's threads for the CPU kernels.
#pragma once
#include <torch/csrc/stable/ops.h>

#include "cpu/parallel.h"

namespace dse {

inline cpu::ParallelFor torch_threads() {
    return cpu::ParallelFor(
        [](int64_t count, int64_t grain, cpu::ParallelFor::Body body, const void* context) {
            torch::stable::parallel_for(0, count, grain,
                                        [=](int64_t begin, int64_t end) { body(context, begin, end); });
        },
        static_cast<int>(torch::stable::get_num_threads()));
}

}  // namespace dse
