// Reductions over the threads that share a row: blockDim.x of them, a power of two, threadIdx.y being the row
// within the block.
//
// A sum's order is fixed, whatever the GPU: each thread keeps one sum for each of its kVectorLength places,
// which are then added by halves, as are the threads of a warp and at last the warps of a row. A sum of n
// numbers is therefore off by at most ceil(n / 16) + 4 roundings, as on the CPU, though not by the same ones.
#pragma once
#include "cuda/vector.cuh"
#include "cuda/warp.cuh"
#include "formats/exp.h"

namespace dse::cuda {

inline constexpr int kMaxWarps = 32;  // of a block

// `value` of every thread of a row combined, in each of them. All threads of the block must call it.
// combine(a, b) must be exactly commutative, so that all threads get the same bits; `shared` is kMaxWarps
// long.
template <class T, class Combine>
__device__ T reduce_row(T value, T* shared, const Combine& combine) {
    const int threads = blockDim.x;
    for (int distance = min(threads, kWarpSize) / 2; distance > 0; distance /= 2)
        value = combine(value, __shfl_xor_sync(kAllLanes, value, distance));
    if (threads <= kWarpSize) return value;
    const int warps = threads / kWarpSize;
    T* const of_row = shared + threadIdx.y * warps;
    __syncthreads();  // the results of an earlier reduction have been read
    if (threadIdx.x % kWarpSize == 0) of_row[threadIdx.x / kWarpSize] = value;
    __syncthreads();
    value = of_row[threadIdx.x & (warps - 1)];
    for (int distance = warps / 2; distance > 0; distance /= 2)
        value = combine(value, __shfl_xor_sync(kAllLanes, value, distance));
    return value;
}

template <class T>
__device__ inline T sum_in_row(T value, T* shared) {
    return reduce_row(value, shared, [](T a, T b) { return a + b; });
}

__device__ inline float largest_in_row(float value, float* shared) {
    return reduce_row(value, shared, [](float a, float b) { return a > b ? a : b; });
}

// A thread's part of a row's sum.
class RowSum {
  public:
    __device__ void add(int place, float x) { sums_[place] += x; }
    __device__ void add_product(int place, float a, float b) {
        sums_[place] = multiply_add(a, b, sums_[place]);
    }
    // The row's sum, in each of its threads. All threads of the block must call it.
    __device__ float total(float* shared) {
#pragma unroll
        for (int half = kVectorLength / 2; half > 0; half /= 2)
#pragma unroll
            for (int i = 0; i < half; ++i) sums_[i] += sums_[i + half];
        return sum_in_row(sums_[0], shared);
    }

  private:
    float sums_[kVectorLength] = {};
};

}  // namespace dse::cuda
