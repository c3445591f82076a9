// The quantize family on the CPU: plain functions over pointers and strides. Every tier gives the same bits.
//
// Strides are in elements. Results are contiguous. `x` may hold any values; what is not finite becomes NaN.
#pragma once
#include <cstdint>

#include "cpu/float_type.h"
#include "cpu/parallel.h"

namespace dse::cpu {

// A row-major matrix of floating-point numbers: elements of a row are adjacent.
struct FloatMatrix {
    const void* data;
    FloatType type;
    int64_t rows;
    int64_t columns;
    int64_t row_stride;
};

// E4M3 codes with a scale for each 1x128 tile, or for each 128x128 block (`rows_per_scale` 1 or 128).
struct CodeMatrix {
    const uint8_t* codes;
    const float* scales;
    int64_t rows;
    int64_t columns;
    int64_t row_stride;
    int64_t scale_row_stride;
    int64_t scale_column_stride;
    int64_t rows_per_scale;
};

// E5M6 codes of `columns` elements a row, packed in `row_stride` bytes, with a scale for each 1x128 tile.
struct PackedMatrix {
    const uint8_t* packed;
    const float* scales;
    int64_t rows;
    int64_t columns;
    int64_t row_stride;
    int64_t scale_row_stride;
    int64_t scale_column_stride;
};

// Row groups: group g is rows [ends[g-1], ends[g]), ascending and within the matrix. `ends` null: all rows,
// one group, and as many columns as padded_columns() gives; otherwise grouped_columns().
struct Groups {
    const int32_t* ends;
    int64_t count;
};

// codes [rows, columns], scales [rows, ceil(columns / 128)].
void quantize_tiles(const FloatMatrix& x, bool power_of_2, uint8_t* codes, float* scales,
                    const ParallelFor& parallel);

// codes_t [columns, M'], scales_t [columns, M' / 128].
void quantize_tiles_transposed(const FloatMatrix& x, const Groups& groups, bool power_of_2, uint8_t* codes_t,
                               float* scales_t, const ParallelFor& parallel);

// The results of both, in one pass over x. Rows outside every group get code 0 and scale 1.
void quantize_tiles_both(const FloatMatrix& x, const Groups& groups, bool power_of_2, uint8_t* codes,
                         float* scales, uint8_t* codes_t, float* scales_t, const ParallelFor& parallel);

// `count` matrices like w, `matrix_stride` elements apart; codes [count, rows, columns], scales [count,
// ceil(rows / 128), ceil(columns / 128)].
void quantize_blocks(const FloatMatrix& w, int64_t count, int64_t matrix_stride, bool power_of_2,
                     uint8_t* codes, float* scales, const ParallelFor& parallel);

// [rows, columns] of `type`, saturated at its largest finite value.
void dequantize(const CodeMatrix& x, FloatType type, void* out, const ParallelFor& parallel);
void dequantize_e5m6(const PackedMatrix& x, FloatType type, void* out, const ParallelFor& parallel);

// packed [rows, e5m6_row_bytes(columns)], scales [rows, ceil(columns / 128)], powers of two.
void quantize_e5m6(const FloatMatrix& x, uint8_t* packed, float* scales, const ParallelFor& parallel);

// quantize_tiles_transposed of the dequantised matrix, without ever storing that.
void retile(const CodeMatrix& x, const Groups& groups, bool power_of_2, uint8_t* codes_t, float* scales_t,
            const ParallelFor& parallel);
void retile_e5m6(const PackedMatrix& x, bool power_of_2, uint8_t* codes_t, float* scales_t,
                 const ParallelFor& parallel);

// out [columns, rows] = x [rows, columns] transposed, byte by byte.
void transpose_bytes(const uint8_t* x, int64_t rows, int64_t columns, int64_t row_stride, uint8_t* out,
                     const ParallelFor& parallel);

}  // namespace dse::cpu
