// Kernels whose requests, sectors, wavefronts and instructions can be told by hand.
#include <cuda_runtime.h>

#include <cstdint>

// Each lane reads x[lane * stride] and writes y[lane].
extern "C" __global__ void strided(const float* x, float* y, int stride) {
    y[threadIdx.x] = x[threadIdx.x * stride];
}

extern "C" __global__ void vectors(const float4* x, float4* y) { y[threadIdx.x] = x[threadIdx.x]; }

// One lane in `every` is active.
extern "C" __global__ void sparse(const float* x, float* y, int every) {
    if (threadIdx.x % every == 0) y[threadIdx.x] = x[threadIdx.x];
}

// Column writes to a tile of the given width, row reads: width 32 puts a column into one bank, 33 spreads it.
template <int kWidth>
__device__ void tile(float* y) {
    __shared__ float tile[32 * kWidth];
    tile[threadIdx.x * kWidth] = static_cast<float>(threadIdx.x);
    __syncwarp();
    y[threadIdx.x] = tile[(threadIdx.x & 1) * kWidth];
}
extern "C" __global__ void tile_32(float* y) { tile<32>(y); }
extern "C" __global__ void tile_33(float* y) { tile<33>(y); }

// 16-byte shared accesses: a quarter warp at a time, no conflicts.
extern "C" __global__ void shared_vectors(float4* y) {
    __shared__ float4 tile[32];
    tile[threadIdx.x] = make_float4(1, 2, 3, 4);
    __syncwarp();
    y[threadIdx.x] = tile[threadIdx.x ^ 1];
}

extern "C" __global__ void mixed(const float* x, float* y, int* counter) {
    float value = x[threadIdx.x];
    value = __fmaf_rn(value, value, 1.f);
    value = __fadd_rn(value, __shfl_xor_sync(~0u, value, 1));
    value = __fsqrt_rn(value);
    atomicAdd(counter, static_cast<int>(value));
    __syncthreads();
    y[threadIdx.x] = value;
}
