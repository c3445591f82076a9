// The same number in every element.
#pragma once
#include "cuda/launch.cuh"
#include "formats/tiles.h"

namespace dse::cuda {

inline constexpr int kFillThreads = 256;

template <class T>
__global__ void __launch_bounds__(kFillThreads) fill_kernel(T* p, int64_t count, T value) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * kFillThreads;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kFillThreads + threadIdx.x; i < count; i += step)
        p[i] = value;
}

template <class T>
void fill(T* p, int64_t count, T value, cudaStream_t stream) {
    if (count == 0) return;
    fill_kernel<<<grid_size(ceil_div(count, kFillThreads), kMaxGridX), kFillThreads, 0, stream>>>(p, count,
                                                                                                  value);
}

}  // namespace dse::cuda
