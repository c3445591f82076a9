// The quantize family on CUDA: what cpu/quantize.h says, with a stream, and with scales of any strides. The
// bits are the CPU's.
//
// Launchers neither allocate nor wait. Nothing is launched for an empty result. Offsets that do not ascend
// within the matrix give meaningless results, but touch no memory outside the arguments.
#pragma once
#include <cuda_runtime_api.h>

#include "formats/views.h"

namespace dse::cuda {

// codes [rows, columns], scales [rows, ceil(columns / 128)].
void quantize_tiles(const FloatMatrix& x, bool power_of_2, uint8_t* codes, const ScaleMatrix& scales,
                    cudaStream_t stream);

// codes_t [columns, M'], scales_t [columns, M' / 128].
void quantize_tiles_transposed(const FloatMatrix& x, const Groups& groups, bool power_of_2, uint8_t* codes_t,
                               const ScaleMatrix& scales_t, cudaStream_t stream);

// The results of both, in one pass over x. Rows outside every group get code 0 and scale 1.
void quantize_tiles_both(const FloatMatrix& x, const Groups& groups, bool power_of_2, uint8_t* codes,
                         const ScaleMatrix& scales, uint8_t* codes_t, const ScaleMatrix& scales_t,
                         cudaStream_t stream);

// quantize_tiles_transposed of the dequantised matrix, without ever storing that.
void retile(const CodeMatrix& x, const Groups& groups, bool power_of_2, uint8_t* codes_t,
            const ScaleMatrix& scales_t, cudaStream_t stream);
void retile_e5m6(const PackedMatrix& x, bool power_of_2, uint8_t* codes_t, const ScaleMatrix& scales_t,
                 cudaStream_t stream);

// `count` matrices that lie `matrix_stride` elements and, if they have scales, `scale_stride` scales apart.
struct Stack {
    int64_t count;
    int64_t matrix_stride;
    int64_t scale_stride;
};

// codes [count, rows, columns], scales [count * ceil(rows / 128), ceil(columns / 128)] of matrices like w.
void quantize_blocks(const FloatMatrix& w, const Stack& stack, bool power_of_2, uint8_t* codes,
                     const ScaleMatrix& scales, cudaStream_t stream);

// codes_t [count, columns, rows], scales_t [count * ceil(columns / 128), ceil(rows / 128)] of matrices of
// blocks.
void transpose_blocks(const CodeMatrix& w, const Stack& stack, uint8_t* codes_t, const ScaleMatrix& scales_t,
                      cudaStream_t stream);

// [count, rows, columns] of `type`, saturated at its largest finite value.
void dequantize(const CodeMatrix& x, const Stack& stack, FloatType type, void* out, cudaStream_t stream);

// [rows, columns] likewise.
void dequantize_e5m6(const PackedMatrix& x, FloatType type, void* out, cudaStream_t stream);

// packed [rows, e5m6_row_bytes(columns)], scales [rows, ceil(columns / 128)], powers of two.
void quantize_e5m6(const FloatMatrix& x, uint8_t* packed, const ScaleMatrix& scales, cudaStream_t stream);

}  // namespace dse::cuda
