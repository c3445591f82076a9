// Accesses of memory: what must work, and one kernel for each access that must be refused.
#include <cuda_runtime.h>

#include <cassert>
#include <cstdint>

// ---- right

// Copies elements of one type; n elements, any grid.
template <typename T>
__device__ void copy(const T* x, T* y, int n) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) y[i] = x[i];
}
extern "C" __global__ void copy_bytes(const uint8_t* x, uint8_t* y, int n) { copy(x, y, n); }
extern "C" __global__ void copy_halves(const uint16_t* x, uint16_t* y, int n) { copy(x, y, n); }
extern "C" __global__ void copy_words(const uint32_t* x, uint32_t* y, int n) { copy(x, y, n); }
extern "C" __global__ void copy_pairs(const uint2* x, uint2* y, int n) { copy(x, y, n); }
extern "C" __global__ void copy_quads(const uint4* x, uint4* y, int n) { copy(x, y, n); }
extern "C" __global__ void widen_signed(const int8_t* x, int64_t* y, int n) {
    if (threadIdx.x < n) y[threadIdx.x] = x[threadIdx.x];
}

// Transposes a matrix of 32 x 32 tiles through dynamic shared memory.
extern "C" __global__ void transpose(const float* x, float* y, int rows, int columns) {
    extern __shared__ float tile[];
    const int row = blockIdx.y * 32, column = blockIdx.x * 32;
    for (int i = threadIdx.y; i < 32; i += blockDim.y) {
        tile[i * 33 + threadIdx.x] = x[(row + i) * columns + column + threadIdx.x];
    }
    __syncthreads();
    for (int i = threadIdx.y; i < 32; i += blockDim.y) {
        y[(column + i) * rows + row + threadIdx.x] = tile[threadIdx.x * 33 + i];
    }
}

// Indexes a local array by a value known only at run time, so that it stays in local memory.
extern "C" __global__ void local_array(const int* x, int* y) {
    int values[16];
    for (int i = 0; i < 16; ++i) values[i] = i * i + static_cast<int>(threadIdx.x);
    y[threadIdx.x] = values[x[threadIdx.x] & 15];
}

__device__ int table[4] = {2, 3, 5, 7};
__constant__ int constants[4] = {11, 13, 17, 19};
extern "C" __global__ void variables(int* y) {
    y[threadIdx.x] = table[threadIdx.x & 3] * constants[threadIdx.x >> 2 & 3];
}

// Every kind of address through one generic pointer.
__device__ __noinline__ int read(const int* p) { return *p; }
extern "C" __global__ void generic(const int* x, int* y, int which) {
    __shared__ int shared[32];
    int local[2] = {static_cast<int>(threadIdx.x), which};
    shared[threadIdx.x] = 100 + static_cast<int>(threadIdx.x);
    __syncwarp();
    const int* p = which == 0 ? x + threadIdx.x : which == 1 ? &shared[threadIdx.x] : &local[threadIdx.x & 1];
    y[threadIdx.x] = read(p);
}

// Sums with atomics of several kinds; the order does not matter to the result.
extern "C" __global__ void atomics(const int* x, int* y, float* z, unsigned long long* w) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(&y[0], x[i]);
    atomicMin(&y[1], x[i]);
    atomicMax(&y[2], x[i]);
    atomicOr(&y[3], x[i]);
    atomicAnd(&y[4], x[i]);
    atomicXor(&y[5], x[i]);
    atomicInc(reinterpret_cast<unsigned*>(&y[6]), 9u);
    atomicAdd(z, static_cast<float>(x[i] & 7));
    atomicAdd(w, static_cast<unsigned long long>(x[i]));
    int old = *reinterpret_cast<volatile int*>(&y[7]), seen;  // compare and swap until it sticks
    do {
        seen = old;
        old = atomicCAS(&y[7], seen, seen + 2);
    } while (old != seen);
}

// The order in which CTAs come to an atomic.
extern "C" __global__ void cta_tickets(int* counter, int* y) {
    if (threadIdx.x == 0) y[blockIdx.x] = atomicAdd(counter, 1);
}

// The order in which lanes come to an atomic, which nothing may depend on.
extern "C" __global__ void tickets(int* counter, int* y) { y[threadIdx.x] = atomicAdd(counter, 1); }

// cp.async of 4, 8 and 16 bytes, of which only the first `bytes` are copied and the rest are zeros.
template <int kBytes>
__device__ void copy_some(const char* x, char* y, int bytes) {
    __shared__ __align__(16) char tile[32 * kBytes];
    const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(tile + threadIdx.x * kBytes));
    const char* from = x + threadIdx.x * kBytes;
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(kBytes), "r"(bytes)
                 : "memory");
    asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;" ::: "memory");
    __syncwarp();
    for (int i = 0; i < kBytes; ++i) y[threadIdx.x * kBytes + i] = tile[threadIdx.x * kBytes + i];
}
extern "C" __global__ void copy_some_4(const char* x, char* y, int bytes) { copy_some<4>(x, y, bytes); }
extern "C" __global__ void copy_some_8(const char* x, char* y, int bytes) { copy_some<8>(x, y, bytes); }
extern "C" __global__ void copy_some_16(const char* x, char* y, int bytes) { copy_some<16>(x, y, bytes); }

// ---- wrong for some arguments, right for others

extern "C" __global__ void read_past_end(const int* x, int* y, int n) {
    if (threadIdx.x < n) y[threadIdx.x % 8] = x[threadIdx.x];
}
extern "C" __global__ void write_past_end(int* y, int n) { y[threadIdx.x + n] = 1; }
extern "C" __global__ void write_before_start(int* y, int i) { y[i] = 1; }
extern "C" __global__ void write_input(int* x) { x[threadIdx.x] = 1; }
extern "C" __global__ void wild(int* y, uint64_t bits) {
    *reinterpret_cast<int*>(reinterpret_cast<uint64_t>(y) ^ bits) = 1;
}
extern "C" __global__ void null_read(const int* p, int* y) { y[0] = *p; }
extern "C" __global__ void misaligned(const char* x, int* y, int offset) {
    y[0] = *reinterpret_cast<const int*>(x + offset);
}
extern "C" __global__ void misaligned_vector(const float* x, float4* y, int offset) {
    y[0] = *reinterpret_cast<const float4*>(x + offset);
}
extern "C" __global__ void read_uninitialised(int* y) { y[0] = y[1] + 1; }
extern "C" __global__ void leave_unwritten(int* y, int n) {
    if (threadIdx.x < n) y[threadIdx.x] = 1;
}
extern "C" __global__ void shared_past_end(int* y, int i) {
    __shared__ int tile[8];
    tile[threadIdx.x & 7] = 1;
    __syncwarp();
    volatile int* p = tile;
    y[0] = p[i];
}
extern "C" __global__ void shared_uninitialised(int* y, int n) {
    __shared__ int tile[32];
    volatile int* p = tile;
    if (threadIdx.x < n) p[threadIdx.x] = 1;
    __syncwarp();
    y[threadIdx.x] = p[threadIdx.x];
}
extern "C" __global__ void shared_address_zero(int* y, int right) {
    __shared__ int word;
    word = 1;
    __syncwarp();
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(&word));
    int value;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(right ? address : 0));
    y[0] = value;
}
extern "C" __global__ void local_uninitialised(const int* x, int* y) {
    int values[16];
    for (int i = 0; i < 8; ++i) values[i + x[0]] = i;
    y[threadIdx.x] = values[x[1]];
}
extern "C" __global__ void local_past_end(const int* x, int* y) {
    int values[16];
    for (int i = 0; i < 16; ++i) values[i] = i + x[0];
    y[threadIdx.x] = values[x[1]];
}
extern "C" __global__ void register_uninitialised(int* y, int written) {
    int value;
    asm volatile(
        "{ .reg .pred p; .reg .u32 perhaps; setp.ne.u32 p, %1, 0; @p mov.u32 perhaps, 0; "
        "add.u32 %0, perhaps, 1; }"
        : "=r"(value)
        : "r"(written));
    y[threadIdx.x] = value;
}
extern "C" __global__ void register_moved_uninitialised(int* y) {  // a mov passes it on: no fault by itself
    int value = 1, other;
    asm volatile("{ .reg .u32 never; mov.u32 %0, never; }" : "=r"(other));
    if (threadIdx.x > 1000) value = other;
    y[threadIdx.x] = value;
}
extern "C" __global__ void divide(const int* x, int* y) { y[0] = 7 / x[0]; }
extern "C" __global__ void guarded_division(const int* x, int* y) {
    int quotient;
    asm volatile("div.s32 %0, 7, %1;" : "=r"(quotient) : "r"(x[0]));  // before the test, as compilers move it
    y[0] = x[0] ? quotient : -1;
}
extern "C" __global__ void endless(const int* x, int* y) {
    while (*reinterpret_cast<const volatile int*>(x) == 0) {
    }
    y[0] = 1;
}
extern "C" __global__ void assertion(const int* x, int* y) {
    assert(x[threadIdx.x] == 0 && "x must be zero");
    y[threadIdx.x] = 1;
}
extern "C" __global__ void trap(int* y, int lane) {
    if (threadIdx.x == lane) __trap();
    y[threadIdx.x] = 1;
}
