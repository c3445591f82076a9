// What nvcc makes of C++ that the parser must read: templates, functions kept out of line, switches as branch
// tables, local arrays, constant and global tables, static and dynamic shared memory, asserts, packed half
// arithmetic.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cassert>
#include <cstdint>

__constant__ float kWeights[4] = {0.5f, 1.0f, 2.0f, -4.0f};
__device__ int kSquares[8] = {0, 1, 4, 9, 16, 25, 36, 49};
__device__ const int* kTable = kSquares;

struct Pair {
    int64_t wide;
    int narrow;
};

__noinline__ __device__ Pair scaled(Pair value, int factor) {
    return {value.wide * factor, value.narrow + factor};
}

__noinline__ __device__ int twice_scaled(int x) {
    if (x < 0) return -1;
    const Pair first = scaled({x, x}, 3);
    return scaled(first, 2).narrow;
}

extern "C" __global__ void calls(const int* x, int64_t* wide, int* narrow, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const Pair pair = scaled({x[i], i}, x[i] + 1);
    wide[i] = pair.wide;
    narrow[i] = pair.narrow + twice_scaled(x[i]);
}

__noinline__ __device__ float branch(int which, float x) {
    switch (which) {
        case 0:
            return x + 1.0f;
        case 1:
            return x * x;
        case 2:
            return x - 7.0f;
        case 3:
            return x / 3.0f;
        case 4:
            return sqrtf(x);
        case 5:
            return floorf(x);
        case 6:
            return x * 0.25f + 2.0f;
        default:
            return -x;
    }
}

extern "C" __global__ void switches(const int* which, const float* x, float* y) {
    const int i = threadIdx.x;
    y[i] = branch(which[i], x[i]);
}

extern "C" __global__ void tables(const int* index, float* y, int* squares) {
    const int i = threadIdx.x;
    float local[8];
    for (int k = 0; k < 8; ++k) local[k] = kWeights[k & 3] * static_cast<float>(k);
    y[i] = local[index[i]];
    squares[i] = kTable[index[i]];
}

template <typename T, int kRows>
__device__ T total(const T* x, T* reversed) {
    __shared__ T rows[kRows][33];
    extern __shared__ __align__(16) unsigned char dynamic[];
    T* spare = reinterpret_cast<T*>(dynamic);
    rows[threadIdx.x / 32 % kRows][threadIdx.x % 32] = x[threadIdx.x];
    spare[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    T sum = 0;
    for (int r = 0; r < kRows; ++r) sum += rows[r][threadIdx.x % 32];
    reversed[threadIdx.x] = spare[blockDim.x - 1 - threadIdx.x];
    return sum;
}

extern "C" __global__ void __launch_bounds__(64, 2)
    shared(const float* x, float* y, float* y_reversed, const double* z, double* sums, double* z_reversed) {
    y[threadIdx.x] = total<float, 2>(x, y_reversed);
    __syncthreads();
    sums[threadIdx.x] = total<double, 2>(z, z_reversed);
}

extern "C" __global__ void asserts(const int* x, int* y) {
    assert(x[threadIdx.x] >= 0);
    y[threadIdx.x] = x[threadIdx.x] + 1;
}

extern "C" __global__ void halves(const __half2* a, const __nv_bfloat162* b, __half2* c, __nv_bfloat162* d,
                                  uint16_t* codes) {
    const int i = threadIdx.x;
    c[i] = __hmax2(__hfma2(a[i], a[i], a[i]), __hneg2(a[i]));
    d[i] = __hfma2(b[i], b[i], __habs2(b[i]));
    const float2 wide = __bfloat1622float2(d[i]);
    codes[i] = __nv_cvt_float2_to_fp8x2(wide, __NV_SATFINITE, __NV_E4M3);
}
