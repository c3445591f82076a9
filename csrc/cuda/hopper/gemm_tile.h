// The tiles that the Hopper gemm computes, and how a CTA's shared memory is laid out for each.
#pragma once
#include <cstdint>

namespace dse::cuda::hopper {

inline constexpr int kThreads = 384;  // a warpgroup that loads, two that multiply
inline constexpr int kDepth = 128;    // codes of K in a stage: one scale
inline constexpr int kMostSharedBytes = 227 * 1024;

// Two warpgroups share a tile of kRows x kColumns results: each has half of the rows, in `kWaves` products
// of 64 rows one after the other.
template <int kRows, int kColumns>
struct Tile {
    static constexpr int kM = kRows, kN = kColumns;
    static constexpr int kWaves = kRows / 128;
    static constexpr int kSums = kColumns / 2;  // of a thread and wave

    // Where a tile's columns may lie in two blocks of B's scales: a scale for each 32 of them.
    static constexpr int kScaleColumns = 128 % kColumns == 0 ? kColumns : 32;

    // In shared memory, from a multiple of 1024 on: kStages times the codes of A and B, in rows of 128; then
    // for each warp that multiplies 16 rows of 64 BF16 results on their way out; then kStages times the
    // scales of A and B; then the barriers.
    static constexpr int kABytes = kM * kDepth, kBBytes = kN * kDepth, kCodeBytes = kABytes + kBBytes;
    static constexpr bool kCopiesOut = kColumns % 64 == 0;
    static constexpr int kSlabRows = 16;  // of a warp in a wave
    static constexpr int kOutBytes = kCopiesOut ? kSlabRows * 128 : 0;
    static constexpr int kScaleBytes = (kM + kN) * 4;
    static constexpr int kFixedBytes = 1024 + 8 * kOutBytes;
    static constexpr int kRingBytes = kCodeBytes + kScaleBytes + 16;
    static constexpr int kMostStages = (kMostSharedBytes - kFixedBytes) / kRingBytes;
    static constexpr int kStages = kMostStages < 12 ? kMostStages : 12;
    static constexpr int kSharedBytes = kFixedBytes + kStages * kRingBytes;

    static_assert(kStages >= 4, "fewer do not hide the latency of device memory");
    static_assert(kColumns % kScaleColumns == 0, "columns of one scale must be as many everywhere");
};

}  // namespace dse::cuda::hopper
