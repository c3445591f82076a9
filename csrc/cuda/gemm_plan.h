// Which tile of the result one CTA of the gemm kernels computes: a pure function of the product's shape and
// of the device. Host code without CUDA, so that it is tested wherever a C++ compiler is.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>

#include "formats/tiles.h"

namespace dse::cuda {

struct GemmTile {
    const char* name;
    int m, n;              // rows and columns of the result
    int depth;             // codes of K converted at a time; two such stages are in shared memory
    int warps_m, warps_n;  // each warp computes m / warps_m rows and n / warps_n columns
    int ctas_per_sm;       // as many as registers and shared memory admit
};

enum GemmTileIndex { kTile16x64, kTile64x64, kTile128x128, kGemmTiles };

inline constexpr GemmTile kGemmTile[kGemmTiles] = {
    // Few rows: the weights stream through once, so more of them are under way at a time.
    {"16x64", 16, 64, 128, 1, 4, 3},
    // Few tiles: four times as many as of the largest.
    {"64x64", 64, 64, 64, 2, 2, 3},
    // 64 rows and 32 columns a warp: 24 bytes of shared memory for 32 multiply-adds of the tensor core, which
    // both take one clock, and as many sums as a thread's registers hold twice.
    {"128x128", 128, 128, 64, 2, 4, 1},
};

// How the groups of one call share its operands: one product, rows of A apiece (grouped_gemm), or a part of
// the depth apiece (grouped_gemm_wgrad).
enum class GemmGroups { kNone, kRows, kDepth };

struct GemmShape {
    int64_t m, n, k;  // of all groups together
    int64_t groups;
    GemmGroups kind;
};

struct GemmPlan {
    GemmTileIndex tile;
    int64_t row_tiles, column_tiles;  // of one product; kRows: of all groups, at most
    int64_t ctas;
};

// Row tiles that suffice for every division of m rows among the groups and the rows of no group.
inline int64_t row_tiles(const GemmShape& shape, int tile_m) {
    const int64_t whole = ceil_div(shape.m, tile_m);
    return shape.kind == GemmGroups::kRows ? whole + shape.groups : whole;
}

inline GemmPlan plan_with(const GemmShape& shape, GemmTileIndex tile) {
    const int64_t rows = row_tiles(shape, kGemmTile[tile].m), columns = ceil_div(shape.n, kGemmTile[tile].n);
    return {tile, rows, columns, rows * columns * (shape.kind == GemmGroups::kDepth ? shape.groups : 1)};
}

// Clock cycles that the call takes by a model of an SM: what its CTAs need for 128 codes of depth is the
// largest of the times of tensor core (1024 multiply-adds a clock), conversion (2.5 instructions a code, 64
// a clock), shared memory (128 bytes a clock) and waiting for the codes of one stage after the other.
inline double modelled_cycles(const GemmShape& shape, GemmTileIndex index, int sms) {
    constexpr double kLatency = 700;  // of device memory
    const GemmTile& t = kGemmTile[index];
    const int64_t columns = ceil_div(shape.n, t.n);
    // Groups of equal size: how uneven they are is not known here.
    int64_t tiles, depth = shape.k;
    const int64_t groups = std::max<int64_t>(shape.groups, 1);  // none at all is a shape, too
    switch (shape.kind) {
        case GemmGroups::kNone:
            tiles = ceil_div(shape.m, t.m) * columns;
            break;
        case GemmGroups::kRows:
            tiles = groups * ceil_div(ceil_div(shape.m, groups), t.m) * columns;
            break;
        case GemmGroups::kDepth:
            tiles = groups * ceil_div(shape.m, t.m) * columns;
            depth = ceil_div(shape.k, groups);
            break;
    }
    const double resident = static_cast<double>(std::clamp<int64_t>(ceil_div(tiles, sms), 1, t.ctas_per_sm));
    const double warp_rows = t.warps_m * t.warps_n * (t.m / t.warps_m + t.n / t.warps_n);
    const double tensor = t.m * t.n * 128 / 1024.0;
    const double conversion = (t.m + t.n) * 128 * 2.5 / 64;
    const double shared = (t.m + t.n + warp_rows) * 128 * 2 / 128;
    const double block =
        std::max(resident * std::max({tensor, conversion, shared}), kLatency * kTile / t.depth);
    const double waves = static_cast<double>(ceil_div(tiles, static_cast<int64_t>(sms * resident)));
    return waves * static_cast<double>(std::max<int64_t>(num_tiles(depth), 1)) * block;
}

// The tile with the smallest modelled time. `forced` (a name such as "64x64", or null) takes its place.
inline GemmPlan plan_gemm(const GemmShape& shape, int sms, const char* forced) {
    int best = 0;
    if (forced != nullptr) {
        while (best < kGemmTiles && std::strcmp(kGemmTile[best].name, forced) != 0) ++best;
        if (best == kGemmTiles)
            throw std::invalid_argument("gemm: DSE_GEMM_TILE must be 16x64, 64x64 or 128x128, got " +
                                        std::string(forced) + "; unset it to let the shape decide");
        return plan_with(shape, static_cast<GemmTileIndex>(best));
    }
    for (int i = 1; i < kGemmTiles; ++i)
        if (modelled_cycles(shape, static_cast<GemmTileIndex>(i), sms) <
            modelled_cycles(shape, static_cast<GemmTileIndex>(best), sms))
            best = i;
    return plan_with(shape, static_cast<GemmTileIndex>(best));
}

// What DSE_PRINT_TILES=1 prints for each call.
inline void print_plan(const GemmShape& shape, const GemmPlan& plan, int sms) {
    constexpr const char* kKind[] = {"gemm", "grouped_gemm", "grouped_gemm_wgrad"};
    std::fprintf(stderr, "%s %lld x %lld x %lld, %lld groups, %d SMs: tile %s, %lld CTAs; modelled cycles",
                 kKind[static_cast<int>(shape.kind)], static_cast<long long>(shape.m),
                 static_cast<long long>(shape.n), static_cast<long long>(shape.k),
                 static_cast<long long>(shape.groups), sms, kGemmTile[plan.tile].name,
                 static_cast<long long>(plan.ctas));
    for (int i = 0; i < kGemmTiles; ++i)
        std::fprintf(stderr, " %s %.0f", kGemmTile[i].name,
                     modelled_cycles(shape, static_cast<GemmTileIndex>(i), sms));
    std::fprintf(stderr, "\n");
}

struct TilePosition {
    int64_t row, column;
};

// The order of the tiles: bands of 8 rows of tiles, and within a band column by column, so that CTAs running
// at the same time share rows of A and of B in the L2 cache.
DSE_FN TilePosition tile_position(int64_t index, int64_t row_tiles, int64_t column_tiles) {
    constexpr int64_t kBand = 8;
    const int64_t band = index / (kBand * column_tiles), within = index % (kBand * column_tiles);
    const int64_t left = row_tiles - band * kBand, rows = left < kBand ? left : kBand;
    return {band * kBand + within % rows, within / rows};
}

}  // namespace dse::cuda
