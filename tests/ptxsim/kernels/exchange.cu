// An all-to-all over ranks: each writes its slice into every peer's memory, raises a flag there, waits for
// its own flags and reads. Epochs reuse the memory, so a second flag acknowledges the reading. What differs
// between the right kernel and the faults, exchange_<fault>, is how flags are written and read.
#include <cstdint>

#include "faults.cuh"

namespace {

constexpr int kMaxRanks = 8;

struct Peers {
    uint4* data[kMaxRanks];
    uint32_t* flags[kMaxRanks];
};

// clang-format off
#define EXCHANGE_FAULTS(X) \
    X(none) X(volatile_and_fences) X(no_sync_before_flag) X(no_sync_after_wait) \
    X(release_of_gpu) X(acquire_of_gpu) X(relaxed_store) X(relaxed_load) X(weak_store) \
    X(no_acknowledgement)
// clang-format on

DEFINE_FAULTS(Fault, EXCHANGE_FAULTS);
using enum Fault;

template <Fault kFault>
__device__ void raise(uint32_t* flag, uint32_t value) {
    if (kFault == volatile_and_fences) {
        __threadfence_system();
        asm volatile("st.volatile.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
    } else if (kFault == release_of_gpu) {
        asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
    } else if (kFault == relaxed_store) {
        asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
    } else if (kFault == weak_store) {
        asm volatile("st.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
    } else {
        asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
    }
}

template <Fault kFault>
__device__ uint32_t look(const uint32_t* flag) {
    uint32_t value;
    if (kFault == volatile_and_fences)
        asm volatile("ld.volatile.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
    else if (kFault == acquire_of_gpu)
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
    else if (kFault == relaxed_load)
        asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
    else
        asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
    return value;
}

// All ranks have come to this point with this epoch; `kind` tells arrival of data from acknowledgement.
template <Fault kFault>
__device__ void meet(const Peers& peers, int rank, int ranks, int kind, uint32_t epoch) {
    if (kFault != no_sync_before_flag) __syncthreads();
    const int peer = threadIdx.x;
    if (peer < ranks) {
        raise<kFault>(peers.flags[peer] + kind * kMaxRanks + rank, epoch);
        while (look<kFault>(peers.flags[rank] + kind * kMaxRanks + peer) < epoch) {
        }
        if (kFault == volatile_and_fences) __threadfence_system();
    }
    if (kFault != no_sync_after_wait) __syncthreads();
}

template <Fault kFault>
__device__ void exchange(const Peers& peers, const uint4* source, uint4* out, int slice, int rank, int ranks,
                         int epochs) {
    for (int epoch = 1; epoch <= epochs; ++epoch) {
        for (int peer = 0; peer < ranks; ++peer)
            for (int i = threadIdx.x; i < slice; i += blockDim.x) {
                uint4 value = source[peer * slice + i];
                value.x += epoch;
                peers.data[peer][rank * slice + i] = value;
            }
        meet<kFault>(peers, rank, ranks, 0, epoch);
        for (int i = threadIdx.x; i < ranks * slice; i += blockDim.x) out[i] = peers.data[rank][i];
        if (kFault != no_acknowledgement) meet<kFault>(peers, rank, ranks, 1, epoch);
    }
}

}  // namespace

#define KERNEL(name)                                                                                     \
    extern "C" __global__ void exchange_##name(const __grid_constant__ Peers peers, const uint4* source, \
                                               uint4* out, int slice, int rank, int ranks, int epochs) { \
        exchange<name>(peers, source, out, slice, rank, ranks, epochs);                                  \
    }
EXCHANGE_FAULTS(KERNEL)
