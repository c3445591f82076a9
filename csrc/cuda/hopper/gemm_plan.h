// Which tile the Hopper gemm takes: a pure function of the product's shape and of the device, like
// cuda/gemm_plan.h, and tested with it.
#pragma once
#include <cmath>
#include <limits>

#include "cuda/gemm_plan.h"

namespace dse::cuda::hopper {

// In the order of kShapes.
enum TileIndex { k128x32, k128x64, k128x128, k256x96, k256x128, kTiles };

struct TileShape {
    const char* name;
    int m, n;
    int cluster;  // CTAs that share their rows of A, at most
};

inline constexpr TileShape kShapes[kTiles] = {
    // Few rows: what counts is that all SMs fetch weights. Rows that are not there cost no memory traffic,
    // and those that are come from the L2 cache once for four tiles.
    {"128x32", 128, 32, 4},
    {"128x64", 128, 64, 2},
    // Products with too few tiles of 256 rows for all SMs.
    {"128x128", 128, 128, 2},
    // Where it needs fewer waves than the next.
    {"256x96", 256, 96, 2},
    // A tensor core's 1024 clocks for 32 KiB from the L2 cache.
    {"256x128", 256, 128, 2},
};

// Gradients of weights have many rows and columns: narrow tiles are not compiled for them.
constexpr bool serves_depth(const TileShape& tile) { return tile.n == 128; }

// CTAs of a cluster: no more than there are tiles side by side, to the next power of two.
inline int cluster_of(const GemmShape& shape, const TileShape& tile) {
    int ctas = tile.cluster;
    while (ctas > 1 && ctas / 2 >= ceil_div(shape.n, tile.n)) ctas /= 2;
    return ctas;
}

// Clusters that run at the same time. The SMs of one lie in one of the parts (GPCs) that an H100 has eight
// of, with 16 or 18 SMs each.
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
    // Counted, issue slots: of rounding 64 columns (65 instructions of two warps), and of a result that is
    // stored without a copy.
    constexpr double kRound = 130, kStore = 0.14;
    const TileShape& t = kShapes[index];
    // Groups of equal size: how uneven they are is not known here.
    const double groups = static_cast<double>(std::max<int64_t>(shape.groups, 1));
    const bool by_rows = shape.kind == GemmGroups::kRows, by_depth = shape.kind == GemmGroups::kDepth;
    if (by_depth && !serves_depth(t)) return std::numeric_limits<double>::infinity();
    const double m = static_cast<double>(shape.m), n = static_cast<double>(shape.n);
    const double depth = static_cast<double>(shape.k) / (by_depth ? groups : 1);
    const int ctas = cluster_of(shape, t);
    const double row_tiles = by_rows ? groups * std::ceil(m / groups / t.m) : std::ceil(m / t.m);
    const double tiles = row_tiles * std::ceil(n / t.n / ctas) * (by_depth ? groups : 1);
    const double waves = std::ceil(tiles / num_clusters(sms, ctas));

    const double tensor = t.m * t.n * 128 / 4096.0;
    const double shared = t.m / 64 * 4 * (64 + t.n) * 32 / 128.0;
    const double l2 = (std::min<double>(m, t.m) / ctas + t.n) * 128 / kL2;
    const double block = std::max({tensor, shared, l2, kChain});
    const double slabs = t.m / 128 * t.n / 64;
    const bool copies = t.n % 64 == 0 && !by_depth;
    const double stored = std::max(t.m * t.n * kStore, t.m * t.n * (by_depth ? 4 : 2) / kL2);
    const double end = kNext + (copies ? slabs * kRound + (slabs - 1) * kCopy : stored);
    const double bytes =
        (m + n * (by_rows ? groups : 1)) * static_cast<double>(shape.k) + m * n * (by_depth ? 4 * groups : 2);
    return kStart +
           std::max(waves * (std::ceil(depth / 128) * block + end), bytes / (kDeviceMemory * sms) + end);
}

}  // namespace dse::cuda::hopper
