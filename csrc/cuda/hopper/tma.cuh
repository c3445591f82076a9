// Copies of boxes between a tensor in device memory and shared memory, done by the copy engine for one
// thread (PTX ISA: cp.async.bulk.tensor). A tensor map (tensor_map.h) describes tensor, box and swizzle;
// coordinates count elements, innermost first. What a box has outside the tensor is loaded as zeros and not
// stored.
#pragma once
#include <cuda.h>

#include <cstdint>

namespace dse::cuda::hopper {

__device__ inline void prefetch_map(const CUtensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// The bytes of the whole box count on `barrier` when they have landed.
__device__ inline void load_box(uint32_t to, const CUtensorMap* map, uint32_t barrier, int x, int y, int z) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
        "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z)
        : "memory");
}

// The same into each CTA of the cluster whose bit is in `ctas`, at the same place, and on the barrier there.
__device__ inline void load_box_to(uint16_t ctas, uint32_t to, const CUtensorMap* map, uint32_t barrier,
                                   int x, int y, int z) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
        "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "h"(ctas)
        : "memory");
}

// Belongs to the thread's open group of stores until commit_stores() closes it.
__device__ inline void store_box(const CUtensorMap* map, uint32_t from, int x, int y, int z) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
                 "r"(from), "r"(x), "r"(y), "r"(z)
                 : "memory");
}
__device__ inline void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Until this thread's stores have read shared memory, which may then be overwritten.
__device__ inline void wait_stores_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
// Until this thread's stores are done; before it exits.
__device__ inline void wait_stores() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// Orders this thread's ordinary accesses to shared memory before copies that are issued after it.
__device__ inline void fence_for_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// With 128-byte swizzle and boxes at multiples of kSwizzleBytes, the 16-byte chunk `chunk` of row `row` lies
// where chunk ^ row % 8 would without. So eight rows of one column of chunks lie in all 32 banks.
inline constexpr uint32_t kSwizzleBytes = 1024;

}  // namespace dse::cuda::hopper
