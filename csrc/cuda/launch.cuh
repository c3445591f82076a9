// Grids: how many blocks a launch gets.
#pragma once
#include <cstdint>

namespace dse::cuda {

inline constexpr int64_t kMaxGridX = 0x7fffffff;
inline constexpr int64_t kMaxGridY = 65535;  // also of gridDim.z

// `wanted` blocks, at most `limit`; kernels walk what is beyond in steps of the grid.
inline unsigned grid_size(int64_t wanted, int64_t limit) {
    return static_cast<unsigned>(wanted < limit ? wanted : limit);
}

}  // namespace dse::cuda
