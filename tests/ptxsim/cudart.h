// The C face of the simulator: what a test or an operator built with DSE_SIMULATOR calls beside the CUDA
// runtime's own entry points, which libptxsim.so also exports (cudart.cpp).
//
// Launches queue on their stream and run jointly at ptxsim_synchronize, cudaStreamSynchronize,
// cudaDeviceSynchronize, cudaEventSynchronize or a blocking copy. Until then no kernel has touched memory.
#pragma once

#include <cstddef>
#include <cstdint>

#define PTXSIM_EXPORT __attribute__((visibility("default")))

enum PtxsimBufferFlags { PTXSIM_READABLE = 1, PTXSIM_WRITABLE = 2, PTXSIM_UNINITIALISED = 4 };

extern "C" {

// Kernels may touch [p, p + bytes) from now on, as `flags` (PtxsimBufferFlags) say. Registering the same
// start again replaces size and flags; parts of one allocation (views) are registered apart, each with its
// own bounds. cudaMalloc registers what it returns. No bytes: nothing is registered.
PTXSIM_EXPORT void ptxsim_buffer(const void* p, size_t bytes, int flags);

// Forgets every buffer registered by ptxsim_buffer; launches that have not run yet are forgotten with them.
PTXSIM_EXPORT void ptxsim_forget_buffers(void);

// 1 and the offset of the first byte of the uninitialised buffer at p that no kernel wrote; 0 if there is
// none; -1 if no buffer registered as uninitialised starts there.
PTXSIM_EXPORT int ptxsim_unwritten(const void* p, size_t* offset);

// Sets an option for later launches (docs/simulator.md lists them); 0, or 1 for an unknown name or value.
PTXSIM_EXPORT int ptxsim_option(const char* name, int64_t value);

// Sets every option back to its default, drops queued launches, buffers, capture state, errors and counters.
PTXSIM_EXPORT void ptxsim_reset(void);

// Runs all queued launches; 0, or a cudaError_t whose text is ptxsim_error().
PTXSIM_EXPORT int ptxsim_synchronize(void);

// What went wrong last: "KIND: sentence [where]"; empty after ptxsim_reset or a run without fault.
PTXSIM_EXPORT const char* ptxsim_error(void);

// JSON of the launches that ran last: [{"kernel": ..., "instructions": ..., ...}, ...].
PTXSIM_EXPORT const char* ptxsim_counters(void);

// ---- kernels from PTX text, for tests that have no host program

// A module's handle, or null (ptxsim_error).
PTXSIM_EXPORT void* ptxsim_module(const char* text, size_t length);
// Pending launches of its kernels are dropped.
PTXSIM_EXPORT void ptxsim_unload(void* module);

// JSON: {"kernel": {"params": [[offset, size], ...], ...}, ...}.
PTXSIM_EXPORT const char* ptxsim_kernels(void* module);

// Queues a launch. `dims` is grid, block and cluster, three numbers each (cluster 0 0 0: what the kernel
// declares). Launches on different streams are concurrent; `rank` is the device they run on. 0 or a
// cudaError_t.
PTXSIM_EXPORT int ptxsim_launch(void* module, const char* kernel, const uint32_t* dims, uint32_t shared_bytes,
                                const void* params, size_t param_bytes, int stream, int rank);
}
