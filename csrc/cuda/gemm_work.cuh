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
    const int limit = static_cast<int>(most < INT32_MAX ? most : INT32_MAX);
    const auto rows_of = [&](int64_t group) {  // whatever offs holds
        const auto end_of = [&](int64_t g) { return max(0, min(p.groups.ends[g * p.offs_stride], limit)); };
        return max(0, end_of(group) - (group == 0 ? 0 : end_of(group - 1)));
    };
    int64_t start = 0;
    for (int64_t i = lane; i < e; i += kWarpSize) start += padded_columns(rows_of(i));
    start = __shfl_sync(kAllLanes, sum_to_lane(start), kWarpSize - 1);
    const int64_t end = start + rows_of(e);
    return {start < most ? start : most, end < most ? end : most};
}

// Where a tile of the result lies and what it is the product of.
struct GemmPlace {
    Range rows, columns;       // inside the result, and of one group
    Range depth;               // empty for rows of no group
    int64_t b_group, product;  // which B, and which result
};

// Tile `index` of all; without rows if the host allowed for more tiles than there are. All lanes of a warp
// call it and get the same. An Int holds the number of tiles.
template <int kTileM, int kTileN, class Int = int64_t>
__device__ inline GemmPlace find_place(const GemmArguments& p, GemmGroups kind, Int index) {
    const Int row_tiles = static_cast<Int>(p.row_tiles), column_tiles = static_cast<Int>(p.column_tiles);
    const Int per_product = row_tiles * column_tiles;
    GemmPlace place{};
    const Int product = kind == GemmGroups::kDepth ? index / per_product : 0;
    place.product = product;
    const auto tile = tile_position<Int>(index - product * per_product, row_tiles, column_tiles);
    const auto range_of = [](int64_t i, int64_t size, int64_t most) -> Range {
        return {i * size, i * size + size < most ? i * size + size : most};
    };
    place.columns = range_of(tile.column, kTileN, p.all.n);
    place.depth = {0, p.all.k};
    if (kind == GemmGroups::kRows) {
        const GroupTile found = find_group_tile<kTileM>(p.groups, p.offs_stride, p.all.m, tile.row);
        place.rows = {found.begin, found.end};
        const bool of_no_group = found.group == p.groups.count;
        place.b_group = of_no_group ? 0 : found.group;
        if (of_no_group) place.depth.end = 0;
    } else {
        place.rows = range_of(tile.row, kTileM, p.all.m);
        if (kind == GemmGroups::kDepth) place.depth = find_columns(p, place.product);
    }
    return place;
}

// Whether a tile changes the result.
__device__ inline bool has_work(const GemmArguments& p, const GemmPlace& place) {
    const bool adds_nothing =
        place.depth.end == place.depth.start && p.all.out.store == GemmStore::kAccumulate;
    return place.rows.end > place.rows.start && !adds_nothing;
}

__device__ inline const float* scales_at(const GemmOperand& x, int64_t row, int64_t k) {
    const int64_t scale_row = x.rows_per_scale == 1 ? row : row / kTile;
    return x.scales + scale_row * x.scale_row_stride + k / kTile * x.scale_k_stride;
}

__device__ inline char* result_at(const GemmArguments& p, int64_t product, int64_t row, int64_t column) {
    const int64_t element = product * p.out_group_stride + row * p.all.out.row_stride + column;
    return static_cast<char*>(p.all.out.data) + element * (p.all.out.store == GemmStore::kBf16 ? 2 : 4);
}

// What the CTA has to do, if anything.
template <int kTileM, int kTileN>
__device__ inline bool find_work(const GemmArguments& p, GemmWork& work) {
    const GemmProduct& all = p.all;
    const GemmPlace place = find_place<kTileM, kTileN>(p, p.kind, blockIdx.x);
    const int64_t row = place.rows.start, column = place.columns.start, k = place.depth.start;
    work.rows = static_cast<int>(place.rows.end - row);
    work.columns = static_cast<int>(place.columns.end - column);
    work.depth = place.depth.end - k;
    work.a = all.a.codes + row * all.a.row_stride + k;
    work.b =
        all.b.codes + place.b_group * p.b_codes_group_stride + column * all.b.row_stride + k * all.b.k_stride;
    work.a_scales = scales_at(all.a, row, k);
    work.b_scales = scales_at(all.b, column, k) + place.b_group * p.b_scales_group_stride;
    work.out = result_at(p, place.product, row, column);
    return has_work(p, place);
}

}  // namespace dse::cuda
