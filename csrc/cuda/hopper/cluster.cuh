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

// mbarrier.cuh's arrive() and wait() on barriers on which other CTAs of the cluster arrive.
__device__ inline void arrive_in_cluster(uint32_t barrier) {
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ inline void wait_for_cluster(uint32_t barrier, uint32_t parity) {
    uint32_t over;
    do {
        asm volatile(
            "{\n.reg .pred over;\n"
            "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 over, [%1], %2;\n"
            "selp.u32 %0, 1, 0, over;\n}"
            : "=r"(over)
            : "r"(barrier), "r"(parity)
            : "memory");
    } while (over == 0);
}

// Until all threads of all CTAs of the cluster have come here; whole warps together.
__device__ inline void synchronize_cluster() {
    asm volatile(
        "barrier.cluster.arrive.release.aligned;\n"
        "barrier.cluster.wait.acquire.aligned;" ::
            : "memory");
}

}  // namespace dse::cuda::hopper
