// Host side of the Hopper gemm: whether it serves, tensor maps, tile, launch.
#include <algorithm>

#include "cuda/hopper/gemm.cuh"
#include "cuda/hopper/gemm_kernel.cuh"
#include "cuda/hopper/gemm_plan.h"
#include "cuda/hopper/tensor_map.h"

namespace dse::cuda::hopper {
namespace {

bool is_hopper(int device) {
    int major = 0, minor = 0;
    return cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
           cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
           major == 9 && minor == 0;
}

BoxedTensor codes_of(const GemmOperand& x, int64_t rows, int64_t k, int64_t groups, int64_t group_stride) {
    return {x.codes, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, k, rows, groups, x.row_stride, group_stride};
}

// The operands as tensor maps describe them, and the result if it is BF16.
struct Tensors {
    BoxedTensor a, b, out;

    explicit Tensors(const GemmArguments& p)
        : a(codes_of(p.all.a, p.all.m, p.all.k, 1, 0)),
          b(codes_of(p.all.b, p.all.n, p.all.k, p.kind == GemmGroups::kRows ? p.groups.count : 1,
                     p.b_codes_group_stride)),
          out{p.all.out.data,
              CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
              2,
              p.all.n,
              p.all.m,
              1,
              p.all.out.row_stride * 2,
              0} {}
};

template <class T, GemmGroups kGroups, bool kBTiles>
void launch(Arguments& args, const Tensors& tensors, int sms, cudaStream_t stream) {
    args.a = make_tensor_map(tensors.a, T::kM / args.cluster.columns);
    args.b = make_tensor_map(tensors.b, T::kN / args.cluster.rows);
    if (args.out_by_copy) args.out = make_tensor_map(tensors.out, T::kSlabRows);
    const auto kernel = gemm_kernel<T, kGroups, kBTiles>;
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes) !=
        cudaSuccess)
        return;  // the caller asks for the error
    cudaLaunchAttribute cluster{};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {static_cast<unsigned>(args.ctas), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = std::min(args.tiles, num_clusters(sms, args.ctas)) * args.ctas;
    config.blockDim = kThreads;
    config.dynamicSmemBytes = T::kSharedBytes;
    config.stream = stream;
    config.attrs = &cluster;
    config.numAttrs = 1;
    cudaLaunchKernelEx(&config, kernel, args);
}

template <TileIndex kIndex>
void launch(Arguments& args, const Tensors& tensors, int sms, cudaStream_t stream) {
    constexpr TileShape kShape = kShapes[kIndex];
    using T = Tile<kShape.m, kShape.n>;
    static_assert(kShape.cluster.rows <= (T::kSharesColumns ? 2 : 1), "the kernel knows no more rows");
    switch (args.gemm.kind) {
        case GemmGroups::kRows:
            return launch<T, GemmGroups::kRows, false>(args, tensors, sms, stream);
        case GemmGroups::kDepth:
            if constexpr (serves_depth(kShape))
                return launch<T, GemmGroups::kDepth, true>(args, tensors, sms, stream);
            return;
        default:
            return args.gemm.all.b.rows_per_scale == 1
                       ? launch<T, GemmGroups::kNone, true>(args, tensors, sms, stream)
                       : launch<T, GemmGroups::kNone, false>(args, tensors, sms, stream);
    }
}

}  // namespace

bool run_gemm(const GemmArguments& arguments, const GemmShape& shape, int device, int sms,
              cudaStream_t stream) {
    const Tensors tensors(arguments);
    if (!is_hopper(device) || arguments.all.b.k_stride != 1 || !has_tensor_map(tensors.a) ||
        !has_tensor_map(tensors.b))
        return false;
    const auto cycles = [&](int i) { return modelled_cycles(shape, static_cast<TileIndex>(i), sms); };
    const GemmPlan plan = choose_plan(shape, kShapes, cycles, forced_tile());
    if (prints_plans()) print_plan("hopper", shape, kShapes, cycles, plan, sms);

    Arguments args{};
    args.gemm = arguments;
    const TileShape& tile = kShapes[plan.tile];
    args.cluster = cluster_of(shape, tile);
    args.ctas = args.cluster.ctas();
    args.gemm.row_tiles = row_tiles(shape, tile.m * args.cluster.rows);
    args.gemm.column_tiles = ceil_div(plan.column_tiles, args.cluster.columns);
    args.tiles = static_cast<int>(plan.tiles / (plan.row_tiles * plan.column_tiles) * args.gemm.row_tiles *
                                  args.gemm.column_tiles);
    args.out_by_copy = arguments.all.out.store == GemmStore::kBf16 && has_tensor_map(tensors.out);
    switch (plan.tile) {
        case k64x24:
            launch<k64x24>(args, tensors, sms, stream);
            break;
        case k64x48:
            launch<k64x48>(args, tensors, sms, stream);
            break;
        case k64x64:
            launch<k64x64>(args, tensors, sms, stream);
            break;
        case k128x128:
            launch<k128x128>(args, tensors, sms, stream);
            break;
        case k256x96:
            launch<k256x96>(args, tensors, sms, stream);
            break;
        default:
            launch<k256x128>(args, tensors, sms, stream);
    }
    return true;
}

}  // namespace dse::cuda::hopper
