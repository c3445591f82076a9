// Which tile the Hopper gemm takes: a pure function of the product's shape and of the device, like
// cuda/gemm_plan.h, and tested with it.
#pragma once
#include <cmath>

#include "cuda/gemm_plan.h"

namespace dse::cuda::hopper {

// In the order of kShapes.
enum TileIndex { k64x64, k128x128, k256x128, kTiles };

struct TileShape {
    const char* name;
    int m, n;
};

inline constexpr TileShape kShapes[kTiles] = {
    // Up to 64 rows the weights' way through device memory is the limit: 64 columns keep twice the SMs busy
    // that 128 would, and rows that are not there cost no memory traffic.
    {"64x64", 64, 64},
    // Products with too few tiles of 256 rows for all SMs.
    {"128x128", 128, 128},
    // Three bytes read from the L2 cache for 512 multiply-adds, where 128x128 needs four.
    {"256x128", 256, 128},
};

// Clock cycles that the call takes by a model of an H100: an SM needs for 128 codes of depth the largest of
// the times of tensor core (4096 multiply-adds a clock), of shared memory that feeds it (128 bytes a clock),
// of the L2 cache and of the steps that follow each other; then for each tile its beginning and its end. No
// choice of tiles is faster than device memory.
inline double modelled_cycles(const GemmShape& shape, TileIndex index, int sms) {
    constexpr double kL2 = 40, kDeviceMemory = 14.5;     // bytes a clock and SM
    constexpr double kChain = 250, kTileLatency = 1500;  // clocks
    const TileShape& t = kShapes[index];
    // Groups of equal size: how uneven they are is not known here.
    const double groups = static_cast<double>(std::max<int64_t>(shape.groups, 1));
    const bool by_rows = shape.kind == GemmGroups::kRows, by_depth = shape.kind == GemmGroups::kDepth;
    const double m = static_cast<double>(shape.m), n = static_cast<double>(shape.n);
    const double depth = static_cast<double>(shape.k) / (by_depth ? groups : 1);
    const double row_tiles = by_rows ? groups * std::ceil(m / groups / t.m) : std::ceil(m / t.m);
    const double tiles = row_tiles * std::ceil(n / t.n) * (by_depth ? groups : 1);
    const int group_n = t.m == 64 ? t.n / 2 : t.n, products = t.m / 64 * (t.n / group_n) * 4;

    const double tensor = t.m * t.n * 128 / 4096.0;
    const double shared = products * (64 + group_n) * 32 / 128.0;
    const double block = std::max({tensor, shared, (t.m + t.n) * 128 / kL2, kChain});
    const double store = t.m * t.n * (by_depth ? 4 : 2) / (2 * kDeviceMemory);
    const double waves = std::ceil(tiles / sms);
    const double bytes =
        (m + n * (by_rows ? groups : 1)) * static_cast<double>(shape.k) + m * n * (by_depth ? 4 * groups : 2);
    return std::max(waves * (std::ceil(depth / 128) * block + store + kTileLatency),
                    bytes / (kDeviceMemory * sms));
}

}  // namespace dse::cuda::hopper
