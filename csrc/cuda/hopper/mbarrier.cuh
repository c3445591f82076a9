// Barriers in shared memory that count arrivals and bytes of asynchronous copies (PTX ISA: mbarrier).
//
// A barrier runs through phases. A phase ends once as many arrivals came as init() said and all bytes that
// were announced have landed; waiting names the parity of the phase, 0 for the first. So waiting for parity
// 1 on a fresh barrier returns at once: "the phase before the first is over".
#pragma once
#include <cstdint>

namespace dse::cuda::hopper {

// The address of shared memory as the instructions below take it.
__device__ inline uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ inline void init_barrier(uint32_t barrier, uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers known to the copy engine; other threads still need a __syncthreads().
__device__ inline void publish_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// What this thread did before is seen by those who have waited for the phase.
__device__ inline void arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and announces `bytes` that copies will bring before the phase can end.
__device__ inline void arrive_expecting(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

// Sleeps in hardware until the phase is over or a time limit passes, hence the loop.
__device__ inline void wait(uint32_t barrier, uint32_t parity) {
    uint32_t over;
    do {
        asm volatile(
            "{\n.reg .pred over;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
            "selp.u32 %0, 1, 0, over;\n}"
            : "=r"(over)
            : "r"(barrier), "r"(parity)
            : "memory");
    } while (over == 0);
}

// A position in a ring of kStages buffers, each with its barriers: which buffer, and the parity of its
// present phase.
template <int kStages>
struct RingPosition {
    int stage = 0;
    uint32_t parity = 0;

    __device__ void advance() {
        if (++stage < kStages) return;
        stage = 0;
        parity ^= 1;
    }
};

}  // namespace dse::cuda::hopper
