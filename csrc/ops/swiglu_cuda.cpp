// CUDA registration of the swiglu family.
#include <tuple>

#include "cuda/swiglu.cuh"
#include "ops/cuda.h"
#include "ops/matrix.h"
#include "ops/swiglu.h"

namespace dse::swiglu {
namespace {

RowWeights read_weights(CudaCall& call, const std::optional<Tensor>& weights) {
    if (weights) call.in(*weights);
    return row_weights(weights);
}

float* written(CudaCall& call, const std::optional<Tensor>& x) { return x ? call.out<float>(*x) : nullptr; }

struct Tiles : Quantized {
    cuda::TileOutput output(CudaCall& call) const {
        return {call.out<uint8_t>(codes), scale_matrix(call.out(scales))};
    }
};

Tensor swiglu(const Tensor& gate_up, const std::optional<Tensor>& weights) {
    check_swiglu("swiglu", gate_up, weights);
    CudaCall call("swiglu", gate_up);
    Tensor out = new_matrix(gate_up, gate_up.size(0), gate_up.size(1) / 2, gate_up.scalar_type());
    const Tensor rows = walkable(gate_up);
    cuda::swiglu(float_matrix(call.in(rows)), read_weights(call, weights), call.out<void>(out),
                 call.stream());
    call.finish();
    return out;
}

std::tuple<Tensor, Tensor, std::optional<Tensor>, std::optional<Tensor>> swiglu_quantize(
    const Tensor& gate_up, const std::optional<Tensor>& weights, bool power_of_2, bool cache) {
    check_swiglu("swiglu_quantize", gate_up, weights);
    CudaCall call("swiglu_quantize", gate_up);
    const int64_t m = gate_up.size(0), columns = gate_up.size(1);
    const Tiles output{new_tiles(gate_up, {m, columns / 2})};
    std::optional<Tiles> cached;
    if (cache) cached = Tiles{new_tiles(gate_up, {m, columns})};
    const Tensor rows = walkable(gate_up);
    cuda::swiglu_quantize(float_matrix(call.in(rows)), read_weights(call, weights), power_of_2,
                          output.output(call), cached ? cached->output(call) : cuda::TileOutput{},
                          call.stream());
    call.finish();
    if (!cached) return {output.codes, output.scales, std::nullopt, std::nullopt};
    return {output.codes, output.scales, cached->codes, cached->scales};
}

std::tuple<Tensor, std::optional<Tensor>> swiglu_gradient(const Tensor& grad, const Tensor& gate_up,
                                                          const std::optional<Tensor>& weights) {
    check_gradient("swiglu_gradient", grad, gate_up, weights);
    CudaCall call("swiglu_gradient", gate_up);
    Tensor grad_gate_up = new_matrix(gate_up, gate_up.size(0), gate_up.size(1), gate_up.scalar_type());
    std::optional<Tensor> grad_weights = new_grad_weights(weights);
    const Tensor rows = walkable(gate_up), grad_rows = walkable(grad);
    cuda::swiglu_gradient(float_matrix(call.in(grad_rows)), float_matrix(call.in(rows)),
                          read_weights(call, weights), call.out<void>(grad_gate_up),
                          written(call, grad_weights), call.stream());
    call.finish();
    return {grad_gate_up, grad_weights};
}

std::tuple<Tensor, std::optional<Tensor>, Tensor> swiglu_backward(const Tensor& grad, const Tensor& codes,
                                                                  const Tensor& scales,
                                                                  const std::optional<Tensor>& weights) {
    check_backward("swiglu_backward", grad, codes, scales, weights);
    CudaCall call("swiglu_backward", codes);
    const int64_t m = codes.size(0), columns = codes.size(1);
    Tensor grad_gate_up = new_matrix(grad, m, columns, ScalarType::BFloat16);
    Tensor output = new_matrix(grad, m, columns / 2, ScalarType::BFloat16);
    std::optional<Tensor> grad_weights = new_grad_weights(weights);
    const Tensor rows = walkable(codes), grad_rows = walkable(grad);
    cuda::swiglu_backward(float_matrix(call.in(grad_rows)), code_matrix(call.in(rows), call.in(scales), 1),
                          read_weights(call, weights), call.out<uint16_t>(grad_gate_up),
                          written(call, grad_weights), call.out<uint16_t>(output), call.stream());
    call.finish();
    return {grad_gate_up, grad_weights, output};
}

}  // namespace
}  // namespace dse::swiglu

DSE_CUDA_KERNELS(m) {
    m.impl("swiglu", TORCH_BOX(&dse::swiglu::swiglu));
    m.impl("swiglu_quantize", TORCH_BOX(&dse::swiglu::swiglu_quantize));
    m.impl("swiglu_gradient", TORCH_BOX(&dse::swiglu::swiglu_gradient));
    m.impl("swiglu_backward", TORCH_BOX(&dse::swiglu::swiglu_backward));
}
