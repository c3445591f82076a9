// The swiglu family on CUDA: the functions of cpu/swiglu.h, with a stream and with scales of any strides.
// Every result but grad_weights has the CPU's bits; the order of that sum is reduce.cuh's.
//
// Launchers neither allocate nor wait.
#pragma once
#include <cuda_runtime_api.h>

#include "formats/views.h"

namespace dse::cuda {

// Codes [rows, columns] and their scales to be written; codes null: not wanted.
struct TileOutput {
    uint8_t* codes;
    ScaleMatrix scales;
};

// out [M, I], of gate_up's type.
void swiglu(const FloatMatrix& gate_up, const RowWeights& weights, void* out, cudaStream_t stream);

// The tiles of swiglu's FP32 output and, if wanted, those of gate_up: in one read of it where I is a multiple
// of 128, in two elsewhere, since then a tile of gate_up spans gate and up.
void swiglu_quantize(const FloatMatrix& gate_up, const RowWeights& weights, bool power_of_2,
                     const TileOutput& output, const TileOutput& cache, cudaStream_t stream);

// grad [M, I] and gate_up of one type; grad_gate_up [M, 2I] of that type; grad_weights [M] or null.
void swiglu_gradient(const FloatMatrix& grad, const FloatMatrix& gate_up, const RowWeights& weights,
                     void* grad_gate_up, float* grad_weights, cudaStream_t stream);

// The same at the dequantised tiles of gate_up, in BF16, and the output again.
void swiglu_backward(const FloatMatrix& grad, const CodeMatrix& gate_up, const RowWeights& weights,
                     uint16_t* grad_gate_up, float* grad_weights, uint16_t* output, cudaStream_t stream);

}  // namespace dse::cuda
