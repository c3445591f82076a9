// Which tile the Hopper gemm takes: a pure function of the product's shape and of the device, like
// cuda/gemm_plan.h, and tested with it.
#pragma once
#include <cmath>
#include <limits>

#include "cuda/gemm_plan.h"
#include "cuda/hopper/gemm_tile.h"

namespace dse::cuda::hopper {

// In the order of kShapes.
enum TileIndex { k64x24, k64x48, k64x64, k128x128, k256x96, k256x128, kTiles };

struct TileShape {
    const char* name;
    int m, n;
    ClusterShape cluster;  // at most
};

inline constexpr TileShape kShapes[kTiles] = {
    // Few rows: what counts is that all SMs fetch weights, each as little as can be, and none twice. Rows of
    // A come from the L2 cache once for all tiles of a cluster.
    {"64x24", 64, 24, {1, 8}},
    {"64x48", 64, 48, {2, 4}},
    {"64x64", 64, 64, {2, 2}},
    // Products with too few tiles of 256 rows for all SMs.
    {"128x128", 128, 128, {1, 2}},
    // Where it needs fewer waves than the next.
    {"256x96", 256, 96, {1, 2}},
    // A tensor core's 1024 clocks for 32 KiB from the L2 cache.
    {"256x128", 256, 128, {1, 2}},
};

// Gradients of weights have many rows and columns: narrow tiles are not compiled for them.
constexpr bool serves_depth(const TileShape& tile) { return tile.n == 128; }

// The cluster of a tile: no more rows and columns than there are tiles above and beside each other in a group
// (of equal size: how uneven they are is not known here), to the next power of two.
inline ClusterShape cluster_of(const GemmShape& shape, const TileShape& tile) {
    const int64_t groups = shape.kind == GemmGroups::kRows ? std::max<int64_t>(shape.groups, 1) : 1;
    ClusterShape cluster = tile.cluster;
    while (cluster.rows > 1 && cluster.rows / 2 >= ceil_div(ceil_div(shape.m, groups), tile.m))
        cluster.rows /= 2;
    while (cluster.columns > 1 && cluster.columns / 2 >= ceil_div(shape.n, tile.n)) cluster.columns /= 2;
    return cluster;
}

// Clusters that run at the same time. The SMs of one lie in one of the parts (GPCs) that an H100 has eight
// of, with 16 or 18 SMs each. (Were some smaller: 132 SMs in eight parts of at most 18 and in pairs have room
// for 13 clusters of eight whatever the parts.)
inline int num_clusters(int sms, int ctas) {
    constexpr int kPart = 16;
    return std::max((ctas <= 2 ? sms : sms / kPart * kPart) / ctas, 1);
}

// Clock cycles that the call takes by a model of an H100: an SM needs for 128 codes of depth the largest of
// the times of tensor core (4096 multiply-adds a clock), of shared memory that feeds it (128 bytes a clock),
// of the L2 cache and of the steps that follow each other; then for each tile its end, when sums are rounded
// and stored while nothing is multiplied. The next tile's first stages are loaded meanwhile, so only the
// first tile of a call waits for them. No choice of tiles is faster than device memory.
inline double modelled_cycles(const GemmShape& shape, TileIndex index, int sms) {
    // Assumed: bytes a clock and SM. Half of what an SM can take from the L2 cache, which is about what
    // simple kernels were measured to get from it; the device memory of an H100 with HBM3.
    constexpr double kL2 = 32, kDeviceMemory = 14.5;
    // Assumed: clocks until the first stage is there, of the steps from one stage to the next, of finding the
    // next tile, and until a copy to device memory has read its 2 KiB of shared memory.
    constexpr double kStart = 1500, kChain = 250, kNext = 300, kCopy = 500;
    // Counted, issue slots: of rounding 16 x 64 results of a warp, and of a result stored without a copy.
    constexpr double kRound = 65, kStore = 0.14;
    const TileShape& t = kShapes[index];
    const double groups = static_cast<double>(std::max<int64_t>(shape.groups, 1));
    const bool by_rows = shape.kind == GemmGroups::kRows, by_depth = shape.kind == GemmGroups::kDepth;
    if (by_depth && !serves_depth(t)) return std::numeric_limits<double>::infinity();
    const double m = static_cast<double>(shape.m), n = static_cast<double>(shape.n);
    const double depth = static_cast<double>(shape.k) / (by_depth ? groups : 1);
    const ClusterShape cluster = cluster_of(shape, t);
    const double rows = t.m * cluster.rows, columns = t.n * cluster.columns;  // of a cluster's tiles
    const double row_tiles = by_rows ? groups * std::ceil(m / groups / rows) : std::ceil(m / rows);
    const double tiles = row_tiles * std::ceil(n / columns) * (by_depth ? groups : 1);
    const double waves = std::ceil(tiles / num_clusters(sms, cluster.ctas()));

    const int warpgroups = t.m == 64 ? 1 : 2, products = t.m / 64;
    const double tensor = t.m * t.n * 128 / 4096.0;
    const double shared = products * 4 * (64 + t.n) * 32 / 128.0;
    const double l2 = (std::min<double>(m, t.m) / cluster.columns + t.n / cluster.rows) * 128 / kL2;
    // One warpgroup with two sets of sums: a stage's products go on while it takes the other steps of the
    // stages beside it. So those are what follows each other, but each set serves every second stage.
    const double chain = warpgroups == 1 ? std::max(kChain / 2, kChain - std::max(tensor, shared)) : kChain;
    const double block = std::max({tensor, shared, l2, chain});
    const double last = std::max(kChain - block, 0.0);   // of the last stage, with which nothing overlaps
    const int slabs = products / warpgroups * t.n / 64;  // of a warp
    const bool copies = t.n % 64 == 0 && !by_depth;
    const double stored = std::max(t.m * t.n * kStore, t.m * t.n * (by_depth ? 4 : 2) / kL2);
    const double end = kNext + last + (copies ? warpgroups * slabs * kRound + (slabs - 1) * kCopy : stored);
    const double bytes =
        (m + n * (by_rows ? groups : 1)) * static_cast<double>(shape.k) + m * n * (by_depth ? 4 * groups : 2);
    return kStart +
           std::max(waves * (std::ceil(depth / 128) * block + end), bytes / (kDeviceMemory * sms) + end);
}

}  // namespace dse::cuda::hopper
