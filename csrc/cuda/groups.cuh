// Which rows a tile of grouped rows has, found on the device: the host never reads offsets.
#pragma once
#include "cuda/warp.cuh"
#include "formats/tiles.h"
#include "formats/views.h"

namespace dse::cuda {

// Rows [begin, end) of one tile, and their group; those past the last group's end belong to group `count`.
struct GroupTile {
    int64_t begin, end, group;
};

// Tile `tile` of `rows` rows, of which each group is cut into tiles of kHeight rows, and after them the rows
// of no group; without rows if there are fewer tiles. All lanes of a warp call it and get the same: 32 groups
// at a time, each lane one, the next 32 being read meanwhile, two scans find the groups' first tiles. Ends
// outside [0, rows] are moved inside it, and ends before an earlier one up to it, so that every row belongs
// to one tile whatever they hold.
template <int kHeight>
__device__ inline GroupTile find_group_tile(const Groups& groups, int64_t ends_stride, int64_t rows,
                                            int64_t tile) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    const int limit = static_cast<int>(rows < INT32_MAX ? rows : INT32_MAX);
    int last_end = 0;
    int64_t first_tile = 0;
    const auto from = [&](int64_t begin, int64_t end, int64_t i, int64_t group) -> GroupTile {
        begin += i * kHeight;
        return {begin, begin + kHeight < end ? begin + kHeight : end, group};
    };
    const auto end_of = [&](int64_t group) {
        return group < groups.count ? min(groups.ends[group * ends_stride], limit) : 0;
    };
    int ahead = end_of(lane);
    for (int64_t base = 0; base < groups.count; base += kWarpSize) {
        int end = ahead;
        ahead = end_of(base + kWarpSize + lane);
        end = largest_to_lane(max(end, last_end));
        const int before = __shfl_up_sync(kAllLanes, end, 1);
        const int begin = lane == 0 ? last_end : before;
        const int tiles = static_cast<int>(ceil_div(end - begin, kHeight));
        const int tiles_end = sum_to_lane(tiles);
        const unsigned beyond = __ballot_sync(kAllLanes, tile < first_tile + tiles_end);
        if (beyond != 0) {
            const int owner = __ffs(static_cast<int>(beyond)) - 1;
            const int64_t its_first = first_tile + __shfl_sync(kAllLanes, tiles_end - tiles, owner);
            return from(__shfl_sync(kAllLanes, begin, owner), __shfl_sync(kAllLanes, end, owner),
                        tile - its_first, base + owner);
        }
        last_end = __shfl_sync(kAllLanes, end, kWarpSize - 1);
        first_tile += __shfl_sync(kAllLanes, tiles_end, kWarpSize - 1);
    }
    const GroupTile rest = from(last_end, rows, tile - first_tile, groups.count);
    return rest.begin < rest.end ? rest : GroupTile{0, 0, groups.count};
}

}  // namespace dse::cuda
