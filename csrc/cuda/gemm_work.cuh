// What one CTA of the gemm kernels computes: it finds its rows, columns and depth from its index and the offs
// in device memory, so that the host needs to read nothing.
#pragma once
#include <cstdint>

#include "cuda/gemm_plan.h"
#include "formats/tiles.h"
#include "formats/views.h"

namespace dse::cuda {

struct GemmArguments {
    GemmProduct all;
    GemmGroups kind;
    int64_t groups;
    const int32_t* offs;
    int64_t offs_stride;
    int64_t b_codes_group_stride, b_scales_group_stride, out_group_stride;
    int64_t row_tiles, column_tiles;
    bool a_vectors, b_vectors;  // rows of codes start at multiples of 16 bytes
    bool out_pairs;             // two neighbouring results can be stored at once
};

// One tile of the result; all pointers are at its first row and column.
struct GemmWork {
    const uint8_t *a, *b;
    const float *a_scales, *b_scales;
    char* out;
    int rows, columns;  // inside the result
    int64_t depth;
};

constexpr unsigned kAllLanes = 0xffffffffu;

// Of this lane's value and those of the lanes before it, the sum or the largest.
template <class Combine>
__device__ inline int64_t scan_lanes(int64_t x, Combine combine) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int step = 1; step < 32; step *= 2) {
        const int64_t before = __shfl_up_sync(kAllLanes, x, step);
        if (lane >= step) x = combine(before, x);
    }
    return x;
}
__device__ inline int64_t sum_to_lane(int64_t x) {
    return scan_lanes(x, [](int64_t a, int64_t b) { return a + b; });
}
__device__ inline int64_t largest_to_lane(int64_t x) {
    return scan_lanes(x, [](int64_t a, int64_t b) { return a > b ? a : b; });
}

struct Range {
    int64_t start, end;
};

// Where group e ends, within [0, most] whatever offs holds; beyond the last group at `most`.
__device__ inline int64_t group_end(const GemmArguments& p, int64_t e, int64_t most) {
    const int64_t end = e < p.groups ? p.offs[e * p.offs_stride] : most;
    return end < 0 ? 0 : end > most ? most : end;
}

// A's rows of one tile and the group they belong to (p.groups: rows of no group); no rows if there are fewer
// tiles than the host allowed for. Each warp looks at 32 groups at a time. Ends that descend are taken for
// empty groups, so that every row belongs to one tile.
struct RowTile {
    Range rows;
    int64_t group;
};
__device__ inline RowTile find_row_tile(const GemmArguments& p, int64_t tile, int tile_m) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    int64_t tiles_before = 0, last_end = 0;
    for (int64_t first = 0; first <= p.groups; first += 32) {
        int64_t end = largest_to_lane(group_end(p, first + lane, p.all.m));
        if (end < last_end) end = last_end;
        int64_t start = __shfl_up_sync(kAllLanes, end, 1);
        if (lane == 0) start = last_end;
        const int64_t tiles = ceil_div(end - start, tile_m);
        const int64_t after = tiles_before + sum_to_lane(tiles);
        const unsigned found = __ballot_sync(kAllLanes, after > tile);
        if (found != 0) {
            const int winner = __ffs(static_cast<int>(found)) - 1;
            start += (tile - (after - tiles)) * tile_m;
            if (end > start + tile_m) end = start + tile_m;
            return {{__shfl_sync(kAllLanes, start, winner), __shfl_sync(kAllLanes, end, winner)},
                    first + winner};
        }
        tiles_before = __shfl_sync(kAllLanes, after, 31);
        last_end = __shfl_sync(kAllLanes, end, 31);
    }
    return {{0, 0}, 0};
}

// The columns of group e in the grouped transposed layout.
__device__ inline Range find_columns(const GemmArguments& p, int64_t e) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int64_t most = p.all.k;
    const auto rows_of = [&](int64_t group) {
        const int64_t rows = group_end(p, group, most) - (group == 0 ? 0 : group_end(p, group - 1, most));
        return rows < 0 ? 0 : rows;
    };
    int64_t start = 0;
    for (int64_t i = lane; i < e; i += 32) start += padded_columns(rows_of(i));
    start = __shfl_sync(kAllLanes, sum_to_lane(start), 31);
    const int64_t end = start + rows_of(e);
    return {start < most ? start : most, end < most ? end : most};
}

// Whether the CTA has something to do.
template <int kTileM, int kTileN>
__device__ inline bool find_work(const GemmArguments& p, GemmWork& work) {
    const GemmProduct& all = p.all;
    const int64_t per_product = p.row_tiles * p.column_tiles;
    const int64_t index = blockIdx.x;
    const int64_t product = p.kind == GemmGroups::kDepth ? index / per_product : 0;
    const TilePosition tile = tile_position(index - product * per_product, p.row_tiles, p.column_tiles);

    Range rows{tile.row * kTileM, all.m}, depth{0, all.k};
    int64_t b_group = 0;
    if (p.kind == GemmGroups::kRows) {
        const RowTile found = find_row_tile(p, tile.row, kTileM);
        rows = found.rows;
        b_group = found.group;
        if (b_group == p.groups) {  // rows of no group
            b_group = 0;
            depth.end = 0;
        }
    } else if (p.kind == GemmGroups::kDepth) {
        depth = find_columns(p, product);
    }
    const int64_t column = tile.column * kTileN;
    const int64_t rows_left = rows.end - rows.start, columns_left = all.n - column;
    work.rows = static_cast<int>(rows_left < kTileM ? rows_left : kTileM);
    work.columns = static_cast<int>(columns_left < kTileN ? columns_left : kTileN);
    work.depth = depth.end - depth.start;
    work.a = all.a.codes + rows.start * all.a.row_stride + depth.start;
    work.b = all.b.codes + b_group * p.b_codes_group_stride + column * all.b.row_stride +
             depth.start * all.b.k_stride;
    const int64_t block = depth.start / kTile;
    work.a_scales = all.a.scales + rows.start * all.a.scale_row_stride + block * all.a.scale_k_stride;
    work.b_scales = all.b.scales + b_group * p.b_scales_group_stride +
                    column / all.b.rows_per_scale * all.b.scale_row_stride + block * all.b.scale_k_stride;
    const int64_t size = all.out.store == GemmStore::kBf16 ? 2 : 4;
    work.out = static_cast<char*>(all.out.data) +
               (product * p.out_group_stride + rows.start * all.out.row_stride + column) * size;
    const bool adds_nothing = work.depth == 0 && all.out.store == GemmStore::kAccumulate;
    return work.rows > 0 && !adds_nothing;
}

}  // namespace dse::cuda
