// Where a tile of the grouped transposed layout comes from, found on the device: the host never reads
// offsets.
#pragma once
#include "formats/tiles.h"
#include "formats/views.h"

namespace dse::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;

// Rows of the matrix that become the columns of one tile; none in a tile that is all gap.
struct RowTile {
    int64_t row;
    int rows;
};

// Rows [begin, end) from their i-th run of 128 on.
__device__ inline RowTile row_tile_of(int64_t begin, int64_t end, int64_t i) {
    const int64_t row = begin + i * kTile, left = end - row;
    return {row, static_cast<int>(left < 0 ? 0 : left < kTile ? left : kTile)};
}

// Tile `tile` of a matrix of `rows` rows; all lanes of a warp call it and get the same. 32 groups at a time,
// each lane one: two scans find the groups' first tiles. Ends outside [0, rows] are moved inside it, and ends
// before an earlier one up to it, so that no offsets lead out of the matrix.
__device__ inline RowTile find_row_tile(const Groups& groups, int64_t rows, int64_t tile) {
    if (groups.ends == nullptr) return row_tile_of(0, rows, tile);
    const int lane = threadIdx.x % 32;
    const int limit = static_cast<int>(rows < INT32_MAX ? rows : INT32_MAX);
    int last_end = 0;
    int64_t first_tile = 0;
    for (int64_t base = 0; base < groups.count; base += 32) {
        int end = base + lane < groups.count ? min(groups.ends[base + lane], limit) : 0;
        end = max(end, last_end);
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            const int earlier = __shfl_up_sync(kAllLanes, end, distance);
            if (lane >= distance) end = max(end, earlier);
        }
        const int before = __shfl_up_sync(kAllLanes, end, 1);
        const int begin = lane == 0 ? last_end : before;
        const int tiles = static_cast<int>(num_tiles(end - begin));
        int tiles_end = tiles;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            const int earlier = __shfl_up_sync(kAllLanes, tiles_end, distance);
            if (lane >= distance) tiles_end += earlier;
        }
        const unsigned beyond = __ballot_sync(kAllLanes, tile < first_tile + tiles_end);
        if (beyond != 0) {
            const int owner = __ffs(static_cast<int>(beyond)) - 1;
            const int64_t its_first = first_tile + __shfl_sync(kAllLanes, tiles_end - tiles, owner);
            return row_tile_of(__shfl_sync(kAllLanes, begin, owner), __shfl_sync(kAllLanes, end, owner),
                               tile - its_first);
        }
        last_end = __shfl_sync(kAllLanes, end, 31);
        first_tile += __shfl_sync(kAllLanes, tiles_end, 31);
    }
    return {0, 0};
}

}  // namespace dse::cuda
