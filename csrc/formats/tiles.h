// Tile arithmetic: how a matrix is cut into 1x128 tiles and 128x128 blocks, and where an expert's columns
// start in the grouped transposed layout.
#pragma once
#include "formats/bits.h"

namespace dse {

inline constexpr int64_t kTile = 128;

DSE_FN int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
DSE_FN int64_t num_tiles(int64_t k) { return ceil_div(k, kTile); }

// Columns of the transposed layout of m rows (no groups).
DSE_FN int64_t padded_columns(int64_t m) { return kTile * num_tiles(m); }

// Capacity of the grouped transposed layout for m rows in `groups` groups: enough for every split of the
// rows, and known without reading the offsets.
DSE_FN int64_t grouped_columns(int64_t m, int64_t groups) { return kTile * (m / kTile + groups); }

// First column of the group after one that starts at `start` and has `rows` rows.
DSE_FN int64_t next_group_start(int64_t start, int64_t rows) { return start + padded_columns(rows); }

}  // namespace dse
