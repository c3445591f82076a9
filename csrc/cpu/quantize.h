// The quantize family on the CPU: plain functions over pointers and strides. Every tier gives the same bits.
//
// Strides are in elements. Results are contiguous. `x` may hold any values; what is not finite becomes NaN.
#pragma once
#include <cstdint>

#include "cpu/parallel.h"
#include "formats/views.h"

namespace dse::cpu {

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
