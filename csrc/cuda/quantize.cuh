// The quantize family on CUDA: what cpu/quantize.h says, with a stream, and with scales of any strides. The
// bits are the CPU's.
//
// Launchers neither allocate nor wait. Nothing is launched for an empty result.
#pragma once
#include <cuda_runtime_api.h>

#include "formats/views.h"

namespace dse::cuda {

// codes [rows, columns], scales [rows, ceil(columns / 128)].
void quantize_tiles(const FloatMatrix& x, bool power_of_2, uint8_t* codes, const ScaleMatrix& scales,
                    cudaStream_t stream);

}  // namespace dse::cuda
