// Cluster launches from the host, for test_cudart.py.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

namespace {

__global__ void rank_of_block(int* ranks) {
    const auto cluster = cooperative_groups::this_cluster();
    if (threadIdx.x == 0)
        ranks[blockIdx.x] = static_cast<int>(cluster.block_rank() * 100 + cluster.num_blocks());
}

__global__ void __cluster_dims__(2, 1, 1) declared(int* ranks) {
    const auto cluster = cooperative_groups::this_cluster();
    if (threadIdx.x == 0) ranks[blockIdx.x] = static_cast<int>(cluster.block_rank());
}

}  // namespace

extern "C" {

int launch_cluster(int* ranks, unsigned grid, unsigned cluster, int non_portable) {
    if (non_portable) cudaFuncSetAttribute(rank_of_block, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(grid);
    config.blockDim = dim3(32);
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, rank_of_block, ranks);
}

int launch_declared(int* ranks, unsigned grid) {
    declared<<<grid, 32>>>(ranks);
    return cudaGetLastError();
}
}
