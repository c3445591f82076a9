// The tiles that the Hopper gemm computes, and how a CTA's shared memory is laid out for each.
#pragma once
#include <cstdint>

#include "formats/tiles.h"

namespace dse::cuda::hopper {

inline constexpr int kThreads = 384;  // a warpgroup that loads, two that multiply if the tile has both
inline constexpr int kDepth = 128;    // codes of K in a stage: one scale
inline constexpr int kMostSharedBytes = 227 * 1024;

// The CTAs of a cluster have tiles beside and below each other. Those beside each other share their rows of
// A, those below each other their columns of B.
struct ClusterShape {
    int rows, columns;  // of tiles

    DSE_FN int ctas() const { return rows * columns; }
};

// A tile of kRows x kColumns results, in products of 64 rows. Two warpgroups share what has 128 rows or more:
// each has half of them, in `kWaves` products one after the other, and multiplies while the other promotes.
// Tiles of 64 rows are one warpgroup's, which has two sets of sums to overlap the two instead.
template <int kRows, int kColumns>
struct Tile {
    static constexpr int kM = kRows, kN = kColumns;
    static constexpr int kGroups = kRows == 64 ? 1 : 2;
    static constexpr int kWarps = 4 * kGroups;
    static constexpr int kWaves = kRows / (64 * kGroups);
    static constexpr int kSums = kColumns / 2;            // of a thread and wave
    static constexpr bool kSharesColumns = kGroups == 1;  // in clusters with a second row

    // 128 * kLoadRegisters + 256 * kMultiplyRegisters are what 384 threads with 168 have.
    static constexpr int kLoadRegisters = kGroups == 2 ? 40 : 88;
    static constexpr int kMultiplyRegisters = kGroups == 2 ? 232 : 208;

    // As a tile's columns may lie in two blocks of B's scales: a scale for each so many of them that the
    // blocks' borders are between two, which is the largest power of two that divides kColumns.
    static constexpr int kScaleColumns = kColumns & -kColumns;

    // In shared memory, from a multiple of 1024 on: kStages times the codes of A and B, in rows of 128; then
    // for each warp that multiplies 16 rows of 64 BF16 results on their way out; then kStages times the
    // scales of A and B; then the barriers.
    static constexpr int kABytes = kM * kDepth, kBBytes = kN * kDepth, kCodeBytes = kABytes + kBBytes;
    static constexpr bool kCopiesOut = kColumns % 64 == 0;
    static constexpr int kSlabRows = 16;  // of a warp in a wave
    static constexpr int kOutBytes = kCopiesOut ? kSlabRows * 128 : 0;
    static constexpr int kScaleBytes = (kM + kN) * 4;
    static constexpr int kFixedBytes = 1024 + kWarps * kOutBytes;
    static constexpr int kRingBytes = kCodeBytes + kScaleBytes + 16;
    static constexpr int kMostStages = (kMostSharedBytes - kFixedBytes) / kRingBytes;
    static constexpr int kStages = kMostStages < 12 ? kMostStages : 12;
    static constexpr int kSharedBytes = kFixedBytes + kStages * kRingBytes;

    static_assert(kStages >= 4, "fewer do not hide the latency of device memory");
    static_assert(kRows == 64 || kRows % 128 == 0, "both warpgroups have as many rows");
};

}  // namespace dse::cuda::hopper
