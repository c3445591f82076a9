// The lanes of a warp: their number, and values combined over them. All 32 must call these functions.
#pragma once
#include <cstdint>

namespace dse::cuda {

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

// Of this lane's value and those of the lanes before it, the sum or the largest.
template <class T, class Combine>
__device__ inline T scan_lanes(T x, const Combine& combine) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
    for (int distance = 1; distance < kWarpSize; distance *= 2) {
        const T before = __shfl_up_sync(kAllLanes, x, distance);
        if (lane >= distance) x = combine(before, x);
    }
    return x;
}
template <class T>
__device__ inline T sum_to_lane(T x) {
    return scan_lanes(x, [](T a, T b) { return a + b; });
}
template <class T>
__device__ inline T largest_to_lane(T x) {
    return scan_lanes(x, [](T a, T b) { return a > b ? a : b; });
}

// The largest of `width` neighbouring lanes' values, in each of them; `width` a power of two.
template <int width>
__device__ inline uint32_t largest_of_lanes(uint32_t value) {
#pragma unroll
    for (int distance = width / 2; distance > 0; distance /= 2)
        value = max(value, __shfl_xor_sync(kAllLanes, value, distance));
    return value;
}

}  // namespace dse::cuda
