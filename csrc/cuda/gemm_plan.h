// Which tile of the result one CTA of the gemm kernels computes: a pure function of the product's shape and
// of the device. Host code without CUDA, so that it is tested wherever a C++ compiler is.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
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
    int tile;                         // its index
    int64_t row_tiles, column_tiles;  // of one product; kRows: of all groups, at most
    int64_t tiles;
};

// Row tiles that suffice for every division of m rows among the groups and the rows of no group.
inline int64_t row_tiles(const GemmShape& shape, int tile_m) {
    const int64_t whole = ceil_div(shape.m, tile_m);
    return shape.kind == GemmGroups::kRows ? whole + shape.groups : whole;
}

template <class Tile>
GemmPlan plan_with(const GemmShape& shape, const Tile& tile, int index) {
    const int64_t rows = row_tiles(shape, tile.m), columns = ceil_div(shape.n, tile.n);
    return {index, rows, columns, rows * columns * (shape.kind == GemmGroups::kDepth ? shape.groups : 1)};
}

// The tile with the smallest cycles(i), or the one called `forced` (such as "64x64", or null) if there is
// one that can serve: cycles(i) is finite.
template <class Tile, int kCount, class Cycles>
GemmPlan choose_plan(const GemmShape& shape, const Tile (&tiles)[kCount], const Cycles& cycles,
                     const char* forced) {
    int best = 0;
    for (int i = 1; i < kCount; ++i)
        if (cycles(i) < cycles(best)) best = i;
    for (int i = 0; i < kCount && forced != nullptr; ++i)
        if (std::strcmp(tiles[i].name, forced) == 0 && std::isfinite(cycles(i))) best = i;
    return plan_with(shape, tiles[best], best);
}

// What DSE_GEMM_TILE forces, or null. A path without a tile of that name chooses for itself.
inline const char* forced_tile() {
    const char* forced = std::getenv("DSE_GEMM_TILE");
    if (forced == nullptr) return nullptr;
    for (const char* known : {"16x64", "64x24", "64x48", "64x64", "128x128", "256x96", "256x128"})
        if (std::strcmp(known, forced) == 0) return forced;
    throw std::invalid_argument(
        "gemm: DSE_GEMM_TILE must be 16x64, 64x24, 64x48, 64x64, 128x128, 256x96 or 256x128, got " +
        std::string(forced) + "; unset it to let the shape decide");
}

inline bool prints_plans() {
    const char* text = std::getenv("DSE_PRINT_TILES");
    return text != nullptr && *text == '1';
}

// What DSE_PRINT_TILES=1 prints for each call; `path` is portable or hopper.
template <class Tile, int kCount, class Cycles>
void print_plan(const char* path, const GemmShape& shape, const Tile (&tiles)[kCount], const Cycles& cycles,
                const GemmPlan& plan, int sms) {
    constexpr const char* kKind[] = {"gemm", "grouped_gemm", "grouped_gemm_wgrad"};
    const auto number = [](int64_t x) { return static_cast<long long>(x); };
    std::fprintf(stderr,
                 "%s %lld x %lld x %lld, %lld groups, %d SMs, %s: tile %s, %lld tiles; modelled cycles",
                 kKind[static_cast<int>(shape.kind)], number(shape.m), number(shape.n), number(shape.k),
                 number(shape.groups), sms, path, tiles[plan.tile].name, number(plan.tiles));
    for (int i = 0; i < kCount; ++i) std::fprintf(stderr, " %s %.0f", tiles[i].name, cycles(i));
    std::fprintf(stderr, "\n");
}

// Clock cycles that the call takes by a model of an SM: what its CTAs need for 128 codes of depth is the
// largest of the times of tensor core (1024 multiply-adds a clock), conversion (2.5 instructions a code, 64
// a clock), shared memory (128 bytes a clock) and waiting for the codes of one stage after the other (16x64
// may have two under way, which is left out).
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

template <class Int = int64_t>
struct TilePosition {
    Int row, column;
};

// The order of the tiles: bands of 8 rows of tiles, and within a band column by column, so that CTAs running
// at the same time share rows of A and of B in the L2 cache.
template <class Int>
DSE_FN TilePosition<Int> tile_position(Int index, Int row_tiles, Int column_tiles) {
    constexpr Int kBand = 8;
    const Int band = index / (kBand * column_tiles), within = index % (kBand * column_tiles);
    const Int left = row_tiles - band * kBand, rows = left < kBand ? left : kBand;
    return {band * kBand + within % rows, within / rows};
}

}  // namespace dse::cuda
