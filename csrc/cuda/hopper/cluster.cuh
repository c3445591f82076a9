// Thread blocks that run on neighbouring SMs and reach each other's shared memory (PTX ISA: clusters).
#pragma once
#include <cstdint>

namespace dse::cuda::hopper {

// This CTA's number in its cluster, that of the cluster in the grid, and how many there are.
__device__ inline int cluster_rank() {
    int rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
__device__ inline int cluster_index() {
    int index;
    asm volatile("mov.u32 %0, %%clusterid.x;" : "=r"(index));
    return index;
}
__device__ inline int num_clusters() {
    int count;
    asm volatile("mov.u32 %0, %%nclusterid.x;" : "=r"(count));
    return count;
}

// Where CTA `rank` of the cluster has what lies at `address` here.
__device__ inline uint32_t in_cta(uint32_t address, int rank) {
    uint32_t there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}

// mbarrier.cuh's arrive() on the barrier of any CTA of the cluster, to say that reads are over which the next
// copy must not overtake. Without a scope, as wait() is: with .cluster a fence of device memory would come
// before each arrival, some hundred clocks, and the L1 cache be emptied after each wait.
__device__ inline void arrive_in_cluster(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Until all threads of all CTAs of the cluster have come here; whole warps together.
__device__ inline void synchronize_cluster() {
    asm volatile(
        "barrier.cluster.arrive.release.aligned;\n"
        "barrier.cluster.wait.acquire.aligned;" ::
            : "memory");
}

}  // namespace dse::cuda::hopper
