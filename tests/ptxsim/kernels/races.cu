// Kernels that are clean, each with a twin that has one fault: NAME_clean and NAME_fault.
#include <cuda_runtime.h>

#include <cstdint>

// Two kernels from one template.
#define PAIR(name, parameters, ...)                                                  \
    extern "C" __global__ void name##_clean parameters { name<false>(__VA_ARGS__); } \
    extern "C" __global__ void name##_fault parameters { name<true>(__VA_ARGS__); }

// ---- shared memory

// Reverses the CTA's elements through shared memory.
template <bool kFault>
__device__ void reverse(const int* x, int* y) {
    __shared__ int tile[128];
    tile[threadIdx.x] = x[threadIdx.x];
    if (!kFault) __syncthreads();
    y[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}
PAIR(reverse, (const int* x, int* y), x, y)

// Uses one buffer for several rounds: the second barrier keeps a round's reads before the next round's
// writes.
template <bool kFault>
__device__ void rounds(const int* x, int* y) {
    __shared__ int tile[128];
    int sum = 0;
    for (int round = 0; round < 4; ++round) {
        tile[threadIdx.x] = x[threadIdx.x] + round;
        __syncthreads();
        sum += tile[(threadIdx.x + 32) % blockDim.x];
        if (!kFault) __syncthreads();
    }
    y[threadIdx.x] = sum;
}
PAIR(rounds, (const int* x, int* y), x, y)

// Neighbouring lanes exchange through shared memory.
template <bool kFault>
__device__ void lanes(const int* x, int* y) {
    __shared__ int tile[32];
    tile[threadIdx.x] = x[threadIdx.x];
    if (!kFault) __syncwarp();
    y[threadIdx.x] = tile[threadIdx.x ^ 1];
}
PAIR(lanes, (const int* x, int* y), x, y)

// The two halves of a diverged warp: one writes, the other reads.
template <bool kFault>
__device__ void halves(const int* x, int* y) {
    __shared__ int tile[32];
    tile[threadIdx.x] = 0;
    __syncwarp();
    int value = x[threadIdx.x];
    if (threadIdx.x < 16) tile[threadIdx.x + 16] = value;
    if (!kFault) __syncwarp();
    if (threadIdx.x >= 16) value += tile[threadIdx.x];
    y[threadIdx.x] = value;
}
PAIR(halves, (const int* x, int* y), x, y)

// All lanes write one word: harmless only if they write the same.
template <bool kFault>
__device__ void one_word(const int* x, int* y) {
    __shared__ int word;
    word = kFault ? x[threadIdx.x] : x[0];
    __syncwarp();
    y[threadIdx.x] = word;
}
PAIR(one_word, (const int* x, int* y), x, y)

// A histogram: the reads must come after all the atomics.
template <bool kFault>
__device__ void histogram(const int* x, int* y) {
    __shared__ int bins[8];
    if (threadIdx.x < 8) bins[threadIdx.x] = 0;
    __syncthreads();
    atomicAdd(&bins[x[threadIdx.x] & 7], 1);
    if (!kFault) __syncthreads();
    if (threadIdx.x < 8) y[threadIdx.x] = bins[threadIdx.x];
}
PAIR(histogram, (const int* x, int* y), x, y)

// Warps write and read bytes of common words: exact to the byte, so only the shifted read is a fault.
template <bool kFault>
__device__ void bytes(const int* x, int* y) {
    __shared__ uint8_t tile[132];
    const int i = threadIdx.x % 32 * 4 + threadIdx.x / 32;  // four warps, interleaved by bytes
    tile[i] = static_cast<uint8_t>(x[threadIdx.x]);
    if (threadIdx.x == 0) tile[128] = 0;
    __syncwarp();
    y[threadIdx.x] = tile[kFault ? i + 1 : i];
}
PAIR(bytes, (const int* x, int* y), x, y)

// The producer's half of a CTA hands over by a named barrier; the fault counts too few threads.
template <bool kFault>
__device__ void named(const int* x, int* y) {
    __shared__ int tile[64];
    if (threadIdx.x < 64) {
        tile[threadIdx.x] = x[threadIdx.x];
        if (kFault) {
            if (threadIdx.x < 32) asm volatile("bar.arrive 1, 96;" ::: "memory");
        } else {
            asm volatile("bar.arrive 1, 128;" ::: "memory");
        }
    } else {
        if (kFault) {
            asm volatile("bar.sync 1, 96;" ::: "memory");
        } else {
            asm volatile("bar.sync 1, 128;" ::: "memory");
        }
        y[threadIdx.x - 64] = tile[threadIdx.x - 64];
    }
}
PAIR(named, (const int* x, int* y), x, y)

// ---- global memory

// Each CTA of two adds its share; without an atomic they overwrite each other.
template <bool kFault>
__device__ void accumulate(const int* x, int* y) {
    if (kFault) {
        y[threadIdx.x] = y[threadIdx.x] + x[blockIdx.x * blockDim.x + threadIdx.x];
    } else {
        atomicAdd(&y[threadIdx.x], x[blockIdx.x * blockDim.x + threadIdx.x]);
    }
}
PAIR(accumulate, (const int* x, int* y), x, y)

// The CTA that comes last adds up what the others have left.
enum LastFault { kNone, kNoFence, kNoBarrier, kBlockScope };
template <int kFault>
__device__ void last(const int* x, int* partial, unsigned* ticket, int* y) {
    __shared__ bool is_last;
    partial[blockIdx.x * blockDim.x + threadIdx.x] = 2 * x[blockIdx.x * blockDim.x + threadIdx.x];
    if (kFault != kNoBarrier) __syncthreads();
    if (threadIdx.x == 0) {
        // After the barrier: a fence covers what its own thread knows.
        if (kFault == kBlockScope) {
            __threadfence_block();
        } else if (kFault != kNoFence) {
            __threadfence();
        }
        is_last = atomicAdd(ticket, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!is_last) return;
    if (threadIdx.x == 0) __threadfence();
    __syncthreads();
    int sum = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i * blockDim.x + threadIdx.x];
    y[threadIdx.x] = sum;
}
#define LAST(name, fault)                                                                   \
    extern "C" __global__ void name(const int* x, int* partial, unsigned* ticket, int* y) { \
        last<fault>(x, partial, ticket, y);                                                 \
    }
LAST(last_clean, kNone)
LAST(last_no_fence, kNoFence)
LAST(last_no_barrier, kNoBarrier)
LAST(last_block_scope, kBlockScope)

// CTA 0 writes a message and sets a flag, CTA 1 waits for it and reads.
enum MessageFault {
    kCorrect,
    kRelaxedStore,
    kRelaxedLoad,
    kWeakStore,
    kCtaRelease,
    kCtaAcquire,
    kGpuRelease,
    kGpuAcquire,
    kNoWarpSyncBefore,
    kNoWarpSyncAfter,
    kGpuScope,
    kFences
};
template <int kFault>
__device__ void message(const int* x, int* mailbox, int* flag, int* y, bool sends) {
    const int lane = threadIdx.x;
    if (sends) {
        mailbox[lane] = x[lane];
        if (kFault != kNoWarpSyncBefore) __syncwarp();
        if (lane == 0) {
            if (kFault == kFences) __threadfence_system();
            if (kFault == kRelaxedStore || kFault == kFences) {
                asm volatile("st.relaxed.sys.global.u32 [%0], 1;" ::"l"(flag) : "memory");
            } else if (kFault == kWeakStore) {
                asm volatile("st.global.u32 [%0], 1;" ::"l"(flag) : "memory");
            } else if (kFault == kCtaRelease) {
                asm volatile("st.release.cta.global.u32 [%0], 1;" ::"l"(flag) : "memory");
            } else if (kFault == kGpuRelease || kFault == kGpuScope) {
                asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(flag) : "memory");
            } else {
                asm volatile("st.release.sys.global.u32 [%0], 1;" ::"l"(flag) : "memory");
            }
        }
        return;
    }
    if (lane == 0) {
        unsigned seen;
        do {
            if (kFault == kRelaxedLoad || kFault == kFences) {
                asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
            } else if (kFault == kCtaAcquire) {
                asm volatile("ld.acquire.cta.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
            } else if (kFault == kGpuAcquire || kFault == kGpuScope) {
                asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
            } else {
                asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(seen) : "l"(flag) : "memory");
            }
        } while (!seen);
        if (kFault == kFences) __threadfence_system();
    }
    if (kFault != kNoWarpSyncAfter) __syncwarp();
    y[lane] = mailbox[lane];
}
#define MESSAGE(name, fault)                                                                            \
    extern "C" __global__ void name(const int* x, int* mailbox, int* flag, int* y) {                    \
        message<fault>(x, mailbox, flag, y, blockIdx.x == 0);                                           \
    }                                                                                                   \
    extern "C" __global__ void name##_ranks(const int* x, int* mailbox, int* flag, int* y, int sends) { \
        message<fault>(x, mailbox, flag, y, sends);                                                     \
    }
MESSAGE(message_clean, kCorrect)
MESSAGE(message_fences, kFences)
MESSAGE(message_relaxed_store, kRelaxedStore)
MESSAGE(message_relaxed_load, kRelaxedLoad)
MESSAGE(message_weak_store, kWeakStore)
MESSAGE(message_cta_release, kCtaRelease)
MESSAGE(message_cta_acquire, kCtaAcquire)
MESSAGE(message_gpu_release, kGpuRelease)
MESSAGE(message_gpu_acquire, kGpuAcquire)
MESSAGE(message_gpu_scope, kGpuScope)
MESSAGE(message_no_warp_sync_before, kNoWarpSyncBefore)
MESSAGE(message_no_warp_sync_after, kNoWarpSyncAfter)

// Every CTA adds to one total and then says so; two CTAs of the fault forget the fence, so that whoever reads
// the total at the end knows only of its own addition and of those of CTAs that came with a fence.
template <bool kFault>
__device__ void total(const int* x, int* sum, unsigned* ticket, int* y) {
    if (threadIdx.x) return;
    atomicAdd(sum, x[blockIdx.x]);
    if (!kFault || blockIdx.x % 2 == 0) __threadfence();
    if (atomicAdd(ticket, 1u) != gridDim.x - 1) return;
    __threadfence();
    y[0] = *sum;
}
PAIR(total, (const int* x, int* sum, unsigned* ticket, int* y), x, sum, ticket, y)

// A lock around a counter that is not atomic: taking it must acquire, giving it back must release.
template <bool kFault>
__device__ void lock(int* flag, int* y) {
    if (threadIdx.x) return;
    int taken = 1;
    while (taken) {
        if (kFault) {
            asm volatile("atom.relaxed.gpu.global.cas.b32 %0, [%1], 0, 1;"
                         : "=r"(taken)
                         : "l"(flag)
                         : "memory");
        } else {
            asm volatile("atom.acquire.gpu.global.cas.b32 %0, [%1], 0, 1;"
                         : "=r"(taken)
                         : "l"(flag)
                         : "memory");
        }
    }
    y[0] = y[0] + 1;
    asm volatile("atom.release.gpu.global.exch.b32 %0, [%1], 0;" : "=r"(taken) : "l"(flag) : "memory");
}
PAIR(lock, (int* flag, int* y), flag, y)

// One warp tells another through a flag in shared memory.
template <bool kFault>
__device__ void shared_flag(const int* x, int* y) {
    __shared__ int tile[32], flag;
    if (threadIdx.x == 0) flag = 0;
    __syncthreads();
    const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(&flag));
    const int lane = threadIdx.x % 32;
    if (threadIdx.x < 32) {
        tile[lane] = x[lane];
        __syncwarp();
        if (lane == 0) asm volatile("st.release.cta.shared.u32 [%0], 1;" ::"r"(at) : "memory");
    } else {
        unsigned seen = 0;
        while (!seen) {
            if (kFault) {
                asm volatile("ld.relaxed.cta.shared.u32 %0, [%1];" : "=r"(seen) : "r"(at) : "memory");
            } else {
                asm volatile("ld.acquire.cta.shared.u32 %0, [%1];" : "=r"(seen) : "r"(at) : "memory");
            }
        }
        y[lane] = tile[lane];
    }
}
PAIR(shared_flag, (const int* x, int* y), x, y)

// A counter of the whole grid; the fault narrows the atomic's scope to the CTA.
template <bool kFault>
__device__ void counter(int* y) {
    if (kFault) {
        int old;
        asm volatile("atom.relaxed.cta.global.add.u32 %0, [%1], 1;" : "=r"(old) : "l"(y) : "memory");
    } else {
        atomicAdd(y, 1);
    }
}
PAIR(counter, (int* y), y)

// y = x + 1, for launches that must be ordered.
extern "C" __global__ void increment(const int* x, int* y) { y[threadIdx.x] = x[threadIdx.x] + 1; }

// The non-coherent path is for data that nobody writes during the launch.
template <bool kFault>
__device__ void non_coherent(int* x, int* y) {
    x[threadIdx.x] = static_cast<int>(threadIdx.x);
    __syncthreads();
    const int* from = x + (threadIdx.x ^ 1);
    y[threadIdx.x] = kFault ? __ldg(from) : *from;
}
PAIR(non_coherent, (int* x, int* y), x, y)

// In place through the non-coherent path: read first, written later.
template <bool kFault>
__device__ void in_place(int* x) {
    const int value = kFault ? __ldg(x + threadIdx.x) : x[threadIdx.x];
    x[threadIdx.x] = value + 1;
}
PAIR(in_place, (int* x), x)

// ---- cp.async

enum CopyFault { kCopyClean, kNoWait, kWaitTooFew, kNoBarrierAfter, kExitEarly, kOverwrite, kSourceChanged };
template <int kFault>
__device__ void copies(const int4* x, int4* scratch, int4* y) {
    __shared__ int4 stages[2][64];
    const int i = threadIdx.x;
    scratch[i] = x[i];
    __syncthreads();
    const int4* source = kFault == kSourceChanged ? scratch : x;
    for (int stage = 0; stage < 2; ++stage) {
        const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(&stages[stage][i]));
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(source + 64 * stage + i)
                     : "memory");
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    if (kFault == kExitEarly) return;
    if (kFault == kOverwrite) stages[0][i] = make_int4(0, 0, 0, 0);
    if (kFault == kSourceChanged) scratch[i] = make_int4(0, 0, 0, 0);
    if (kFault == kWaitTooFew) {
        asm volatile("cp.async.wait_group 2;" ::: "memory");
    } else if (kFault != kNoWait) {
        asm volatile("cp.async.wait_group 1;" ::: "memory");
    }
    if (kFault != kNoBarrierAfter) __syncthreads();
    y[i] = stages[0][63 - i];
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
    y[64 + i] = stages[1][63 - i];
}
#define COPIES(name, fault) \
    extern "C" __global__ void name(const int4* x, int4* scratch, int4* y) { copies<fault>(x, scratch, y); }
COPIES(copies_clean, kCopyClean)
COPIES(copies_no_wait, kNoWait)
COPIES(copies_wait_too_few, kWaitTooFew)
COPIES(copies_no_barrier, kNoBarrierAfter)
COPIES(copies_exit_early, kExitEarly)
COPIES(copies_overwrite, kOverwrite)
COPIES(copies_source_changed, kSourceChanged)
