#include "cpu/swiglu.h"

#include <cstring>

#include "cpu/cache.h"
#include "cpu/intrinsics.h"
#include "formats/bf16.h"
#include "formats/e4m3.h"
#include "formats/e5m6.h"
#include "formats/exp.h"
#include "formats/f16.h"
#include "formats/scale.h"
#include "formats/tiles.h"

#define DSE_BODY "cpu/swiglu.inc"
#include "cpu/foreach_isa.h"

namespace dse::cpu {

void swiglu(const FloatMatrix& gate_up, const RowWeights& weights, void* out, const ParallelFor& parallel) {
    DSE_SELECT(swiglu)(gate_up, weights, out, parallel);
}

void swiglu_quantize(const FloatMatrix& gate_up, const RowWeights& weights, bool power_of_2,
                     const TileResults& output, const TileResults& cache, const ParallelFor& parallel) {
    DSE_SELECT(swiglu_quantize)(gate_up, weights, power_of_2, output, cache, parallel);
}

void swiglu_gradient(const FloatMatrix& grad, const FloatMatrix& gate_up, const RowWeights& weights,
                     void* grad_gate_up, float* grad_weights, const ParallelFor& parallel) {
    DSE_SELECT(swiglu_gradient)(grad, gate_up, weights, grad_gate_up, grad_weights, parallel);
}

void swiglu_backward(const FloatMatrix& grad, const CodeMatrix& gate_up, const RowWeights& weights,
                     uint16_t* grad_gate_up, float* grad_weights, uint16_t* output,
                     const ParallelFor& parallel) {
    DSE_SELECT(swiglu_backward)(grad, gate_up, weights, grad_gate_up, grad_weights, output, parallel);
}

}  // namespace dse::cpu
