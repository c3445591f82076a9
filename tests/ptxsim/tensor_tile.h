// What a tensor core makes of one warp's tile, 16 rows of A times B plus C: exactly, or with a short
// accumulator.
#pragma once
#include <array>
#include <cstdint>

#include "program.h"

namespace ptxsim {

inline constexpr int kTileRows = 16, kMostTileColumns = 256, kMostTileDepth = 32;

struct TensorTile {
    TensorTile(int tile_columns, int tile_depth) : columns(tile_columns), depth(tile_depth) {}

    // Elements of a row of A, or of a column of B, from `index` on.
    void set_a(int row, int index, Type type, const uint8_t* bytes, int count, double sign = 1);
    void set_b(int column, int index, Type type, const uint8_t* bytes, int count);
    // c [16, columns] becomes c + a b, rounded once to FP32.
    //
    // fraction_bits == 0: the sum is taken in FP64.
    // Otherwise every term is aligned to the largest exponent among them, cut (two's complement: towards
    // minus infinity) to this many bits below it, and added; so does the sum.
    void multiply_add(float* c, int64_t fraction_bits) const;

    const int columns, depth;

  private:
    void add_exact(float* c) const;

    std::array<double, kTileRows * kMostTileDepth> a_;         // [row][index]
    std::array<double, kMostTileDepth * kMostTileColumns> b_;  // [index][column]
};

}  // namespace ptxsim
