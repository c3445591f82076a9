// Registers moved between the warpgroups of a CTA (PTX ISA: setmaxnreg). All warps of a warpgroup execute
// them together; the counts of all threads must fit in what the launch bounds allot.
#pragma once

namespace dse::cuda::hopper {

// Gives back what is above kCount registers a thread.
template <int kCount>
__device__ inline void release_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

// Waits until kCount registers a thread are there.
template <int kCount>
__device__ inline void claim_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

}  // namespace dse::cuda::hopper
