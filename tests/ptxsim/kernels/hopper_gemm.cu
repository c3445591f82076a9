// The package's Hopper gemm on its own, for test_hopper_gemm.py, which also compiles it with one line of it
// changed: a [m, k] in tiles, b [n, k] in blocks, BF16, tiles of ROWS x COLUMNS on clusters of cluster_rows *
// cluster_columns CTAs.
#include "cuda/hopper/gemm_kernel.cuh"
#include "cuda/hopper/tensor_map.h"

using namespace dse;
using namespace dse::cuda;
using namespace dse::cuda::hopper;

extern "C" __attribute__((visibility("default"))) int run(const uint8_t* a, const float* a_scales,
                                                          const uint8_t* b, const float* b_scales, void* out,
                                                          int m, int n, int k, int clusters, int cluster_rows,
                                                          int cluster_columns) {
    using T = Tile<ROWS, COLUMNS>;
    const ClusterShape cluster{cluster_rows, cluster_columns};
    const auto boxed = [&](const void* data, CUtensorMapDataType type, int64_t element, int64_t columns,
                           int64_t rows, int box_rows) {
        return make_tensor_map({data, type, element, columns, rows, 1, columns * element, 0}, box_rows);
    };
    const int64_t blocks = num_tiles(k);
    Arguments args{};
    args.a = boxed(a, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, k, m, T::kM / cluster.columns);
    args.b = boxed(b, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, k, n, T::kN / cluster.rows);
    args.out = boxed(out, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, n, m, T::kSlabRows);
    args.out_by_copy = T::kCopiesOut;
    args.gemm.all = {{a, k, 1, a_scales, blocks, 1, 1},
                     {b, k, 1, b_scales, blocks, 1, kTile},
                     {out, n, GemmStore::kBf16},
                     m,
                     n,
                     k};
    args.gemm.kind = GemmGroups::kNone;
    args.gemm.out_pairs = true;
    args.gemm.row_tiles = ceil_div(m, T::kM * cluster.rows);
    args.gemm.column_tiles = ceil_div(n, T::kN * cluster.columns);
    args.tiles = static_cast<int>(args.gemm.row_tiles * args.gemm.column_tiles);
    args.cluster = cluster;
    args.ctas = cluster.ctas();
    const auto kernel = gemm_kernel<T, GemmGroups::kNone, false>;
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes) !=
        cudaSuccess)
        return 1;
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(args.ctas), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = clusters * args.ctas;
    config.blockDim = kThreads;
    config.dynamicSmemBytes = T::kSharedBytes;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return static_cast<int>(cudaLaunchKernelEx(&config, kernel, args));
}
