// The swiglu family on the CPU: plain functions over pointers and strides.
//
// gate_up [M, 2I] holds gate first, then up; s is the sigmoid of formats/exp.h, everything is FP32:
//
//     output      = ((gate * s(gate)) * up) * weight
//     slope       = fma(gate * s(gate), s(-gate), s(gate)), the derivative of gate * s(gate)
//     grad_gate   = ((grad * weight) * up) * slope
//     grad_up     = (grad * weight) * (gate * s(gate))
//     grad_weight = sum over the row of grad * ((gate * s(gate)) * up)
//
// Results are rounded once, to nearest even, and beyond the largest finite value become infinity. Every tier
// gives the same bits, for any number of threads: of a row's sum, lane j of 16 takes the elements j, j + 16,
// ... in that order, each by a fused multiply-add, and then lanes j + 8 are added to lanes j, j + 4, j + 2,
// and j + 1. (Which NaN an FP32 result is, and its sign, is not promised.)
//
// Strides are in elements. Results are contiguous.
#pragma once
#include "cpu/quantize.h"

namespace dse::cpu {

// out [M, I], of gate_up's type.
void swiglu(const FloatMatrix& gate_up, const RowWeights& weights, void* out, const ParallelFor& parallel);

// The tiles of swiglu's FP32 output and, if wanted, those of gate_up.
void swiglu_quantize(const FloatMatrix& gate_up, const RowWeights& weights, bool power_of_2,
                     const TileResults& output, const TileResults& cache, const ParallelFor& parallel);

// grad [M, I] and gate_up of one type; grad_gate_up [M, 2I] of that type; grad_weights [M] or null.
void swiglu_gradient(const FloatMatrix& grad, const FloatMatrix& gate_up, const RowWeights& weights,
                     void* grad_gate_up, float* grad_weights, const ParallelFor& parallel);

// The same at the dequantised tiles of gate_up, in BF16, and the output again.
void swiglu_backward(const FloatMatrix& grad, const CodeMatrix& gate_up, const RowWeights& weights,
                     uint16_t* grad_gate_up, float* grad_weights, uint16_t* output,
                     const ParallelFor& parallel);

}  // namespace dse::cpu
