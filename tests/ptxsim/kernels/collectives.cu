// Lanes and warps that act together: shuffles, votes, matches, reductions, barriers; and their misuse.
#include <cuda_runtime.h>

#include <cstdint>

// ---- shuffles and the like: one warp, results of each kind side by side (row r of y holds result r)

extern "C" __global__ void shuffles(const int* x, const int* source, int* y) {
    const int lane = threadIdx.x, value = x[lane];
    y[0 * 32 + lane] = __shfl_sync(~0u, value, source[lane]);
    y[1 * 32 + lane] = __shfl_up_sync(~0u, value, 3);
    y[2 * 32 + lane] = __shfl_down_sync(~0u, value, 5);
    y[3 * 32 + lane] = __shfl_xor_sync(~0u, value, 9);
    y[4 * 32 + lane] = __shfl_sync(~0u, value, 2, 8);
    y[5 * 32 + lane] = __shfl_up_sync(~0u, value, 1, 4);
    y[6 * 32 + lane] = __shfl_down_sync(~0u, value, 1, 16);
    int partial = -1;
    if (lane % 3 == 0) partial = __shfl_xor_sync(0x49249249u, value, 0);
    y[7 * 32 + lane] = partial;
}

extern "C" __global__ void votes(const int* x, unsigned* y) {
    const int lane = threadIdx.x, value = x[lane];
    y[0 * 32 + lane] = __ballot_sync(~0u, value > 0);
    y[1 * 32 + lane] = __all_sync(~0u, value > 0);
    y[2 * 32 + lane] = __any_sync(~0u, value > 0);
    y[3 * 32 + lane] = __match_any_sync(~0u, value & 3);
    int same;
    y[4 * 32 + lane] = __match_all_sync(~0u, value >> 30, &same);
    y[5 * 32 + lane] = same;
    y[6 * 32 + lane] = __reduce_add_sync(~0u, value);
    y[7 * 32 + lane] = __reduce_min_sync(~0u, value);
    y[8 * 32 + lane] = __reduce_max_sync(~0u, static_cast<unsigned>(value));
    y[9 * 32 + lane] = __reduce_xor_sync(~0u, static_cast<unsigned>(value));
    const unsigned odd = __ballot_sync(~0u, lane & 1);
    unsigned inner = 0;
    if (lane & 1) inner = __ballot_sync(odd, value > 0);
    y[10 * 32 + lane] = inner;
    // Peers with one value reduce among themselves: disjoint masks at one instruction.
    const unsigned peers = __match_any_sync(~0u, value & 3);
    y[11 * 32 + lane] = __reduce_add_sync(peers, 1);
}

// The softmax of a row of 32 * n elements by one warp.
extern "C" __global__ void softmax(const float* x, float* y, int n) {
    const float* row = x + blockIdx.x * 32 * n;
    float most = -INFINITY, sum = 0;
    for (int i = threadIdx.x; i < 32 * n; i += 32) most = fmaxf(most, row[i]);
    for (int step = 16; step; step /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
    for (int i = threadIdx.x; i < 32 * n; i += 32) sum += expf(row[i] - most);
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    for (int i = threadIdx.x; i < 32 * n; i += 32) y[blockIdx.x * 32 * n + i] = expf(row[i] - most) / sum;
}

// Lanes that leave a loop at different times meet again.
extern "C" __global__ void collatz(const int* x, int* y, int* meetings) {
    int value = x[threadIdx.x], steps = 0;
    while (value != 1) {
        value = value & 1 ? 3 * value + 1 : value / 2;
        ++steps;
    }
    y[threadIdx.x] = steps;
    meetings[threadIdx.x] = __reduce_max_sync(~0u, steps);
}

// ---- barriers

extern "C" __global__ void barrier_reductions(const int* x, int* y) {
    const int value = x[threadIdx.x];
    const int count = __syncthreads_count(value & 1);
    const int all = __syncthreads_and(value >= 0);
    const int any = __syncthreads_or(value > 250);
    y[threadIdx.x] = count * 4 + (all != 0) * 2 + (any != 0);
}

// Two pairs of warps, each with a barrier of its own, at their own pace.
extern "C" __global__ void two_barriers(const int* x, int* y) {
    __shared__ int tile[128];
    const int half = threadIdx.x / 64;
    int value = 0;
    for (int round = 0; round < 3 + 2 * half; ++round) {
        tile[threadIdx.x] = x[threadIdx.x] + round;
        if (half) {
            asm volatile("bar.sync 2, 64;" ::: "memory");
        } else {
            asm volatile("bar.sync 1, 64;" ::: "memory");
        }
        value += tile[threadIdx.x ^ 33];
        if (half) {
            asm volatile("bar.sync 2, 64;" ::: "memory");
        } else {
            asm volatile("bar.sync 1, 64;" ::: "memory");
        }
    }
    y[threadIdx.x] = value;
}

// ---- misuse for some arguments, right for others

extern "C" __global__ void shuffle_from_absent(const int* x, int* y, int bit) {
    int value = x[threadIdx.x];
    if (threadIdx.x < 16) value = __shfl_sync(0xffffu, value, threadIdx.x ^ bit);
    y[threadIdx.x] = value;
}
extern "C" __global__ void shuffle_diverged(const int* x, int* y, int n) {
    int value = x[threadIdx.x];
    if (threadIdx.x < n) {
        value = __shfl_xor_sync(~0u, value, 1);
        y[threadIdx.x] = value;
    } else {
        value = __ballot_sync(~0u, value > 0);
        y[threadIdx.x] = value + 1;
    }
}
extern "C" __global__ void mask_without_self(const int* x, int* y, unsigned mask) {
    y[threadIdx.x] = __shfl_xor_sync(mask, x[threadIdx.x], 1);
}
extern "C" __global__ void barrier_diverged(const int* x, int* y, int bit) {
    if (threadIdx.x & bit) {
        y[threadIdx.x] = x[threadIdx.x];
        asm volatile("bar.sync 0;" ::: "memory");
    } else {
        y[threadIdx.x] = 1;
        asm volatile("bar.sync 0;" ::: "memory");
    }
}
extern "C" __global__ void barrier_after_exit(const int* x, int* y, int n) {
    if (static_cast<int>(threadIdx.x) >= n) return;
    y[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
}
extern "C" __global__ void barrier_counts_differ(int* y, int count) {
    y[threadIdx.x] = 1;
    if (threadIdx.x < 32) {
        asm volatile("bar.sync 1, %0;" ::"r"(count) : "memory");
    } else {
        asm volatile("bar.sync 1, 96;" ::: "memory");
    }
}
extern "C" __global__ void barrier_of(int* y, int count) {
    y[threadIdx.x] = 1;
    asm volatile("bar.sync 1, %0;" ::"r"(count) : "memory");
}
extern "C" __global__ void arrive_without_wait(int* y, int n) {
    y[threadIdx.x] = 1;
    if (threadIdx.x < 32) asm volatile("bar.arrive 1, 96;" ::: "memory");
    if (threadIdx.x >= n) asm volatile("bar.sync 1, 96;" ::: "memory");
}
extern "C" __global__ void wait_without_arrive(int* y, int n) {
    y[threadIdx.x] = 1;
    if (threadIdx.x < 32) asm volatile("bar.sync 1, 96;" ::: "memory");
    if (threadIdx.x >= n) asm volatile("bar.arrive 1, 96;" ::: "memory");
}
