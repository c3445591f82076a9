// What one CTA of the gemm kernels computes: it finds its rows, columns and depth from its index and the offs
// in device memory, so that the host needs to read nothing.
#pragma once
#include <cstdint>

#include "cuda/gemm_plan.h"
#include "cuda/groups.cuh"

namespace dse::cuda {

struct GemmArguments {
    GemmProduct all;
    GemmGroups kind;
    Groups groups;
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

struct Range {
    int64_t start, end;
};

// The columns of group e in the grouped transposed layout.
__device__ inline Range find_columns(const GemmArguments& p, int64_t e) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    const int64_t most = p.all.k;
    const auto end_of = [&](int64_t group) -> int64_t {  // within [0, most] whatever offs holds
        const int64_t end = group < 0 ? 0 : p.groups.ends[group * p.offs_stride];
        return end < 0 ? 0 : end > most ? most : end;
    };
    const auto rows_of = [&](int64_t group) {
        const int64_t rows = end_of(group) - end_of(group - 1);
        return rows < 0 ? 0 : rows;
    };
    int64_t start = 0;
    for (int64_t i = lane; i < e; i += kWarpSize) start += padded_columns(rows_of(i));
    start = __shfl_sync(kAllLanes, sum_to_lane(start), kWarpSize - 1);
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
        const GroupTile found = find_group_tile<kTileM>(p.groups, p.offs_stride, all.m, tile.row);
        rows = {found.begin, found.end};
        b_group = found.group;
        if (b_group == p.groups.count) {  // rows of no group
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
