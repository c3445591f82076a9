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

// [rows, columns] of `type`, saturated at its largest finite value.
void dequantize(const CodeMatrix& x, FloatType type, void* out, cudaStream_t stream);
void dequantize_e5m6(const PackedMatrix& x, FloatType type, void* out, cudaStream_t stream);

// packed [rows, e5m6_row_bytes(columns)], scales [rows, ceil(columns / 128)], powers of two.
void quantize_e5m6(const FloatMatrix& x, uint8_t* packed, const ScaleMatrix& scales, cudaStream_t stream);

}  // namespace dse::cuda
