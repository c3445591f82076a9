// Schemas and CPU registration of the swiglu family.
#include "ops/swiglu.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/swiglu.h"
#include "ops/matrix.h"
#include "ops/parallel.h"

namespace dse::swiglu {
namespace {

float* floats(const std::optional<Tensor>& x) {
    return x ? static_cast<float*>(x->mutable_data_ptr()) : nullptr;
}
uint16_t* words(const Tensor& x) { return static_cast<uint16_t*>(x.mutable_data_ptr()); }

struct Tiles : Quantized {
    TileResults results() const {
        return {static_cast<uint8_t*>(codes.mutable_data_ptr()),
                static_cast<float*>(scales.mutable_data_ptr())};
    }
};

Tensor swiglu(const Tensor& gate_up, const std::optional<Tensor>& weights) {
    check_swiglu("swiglu", gate_up, weights);
    Tensor out = new_matrix(gate_up, gate_up.size(0), gate_up.size(1) / 2, gate_up.scalar_type());
    const Tensor rows = walkable(gate_up);
    cpu::swiglu(float_matrix(rows), row_weights(weights), out.mutable_data_ptr(), torch_threads());
    return out;
}

std::tuple<Tensor, Tensor, std::optional<Tensor>, std::optional<Tensor>> swiglu_quantize(
    const Tensor& gate_up, const std::optional<Tensor>& weights, bool power_of_2, bool cache) {
    check_swiglu("swiglu_quantize", gate_up, weights);
    const int64_t m = gate_up.size(0), columns = gate_up.size(1);
    const Tiles output{new_tiles(gate_up, {m, columns / 2})};
    std::optional<Tiles> cached;
    if (cache) cached = Tiles{new_tiles(gate_up, {m, columns})};
    const Tensor rows = walkable(gate_up);
    cpu::swiglu_quantize(float_matrix(rows), row_weights(weights), power_of_2, output.results(),
                         cached ? cached->results() : TileResults{nullptr, nullptr}, torch_threads());
    if (!cached) return {output.codes, output.scales, std::nullopt, std::nullopt};
    return {output.codes, output.scales, cached->codes, cached->scales};
}

std::tuple<Tensor, std::optional<Tensor>> swiglu_gradient(const Tensor& grad, const Tensor& gate_up,
                                                          const std::optional<Tensor>& weights) {
    check_gradient("swiglu_gradient", grad, gate_up, weights);
    Tensor grad_gate_up = new_matrix(gate_up, gate_up.size(0), gate_up.size(1), gate_up.scalar_type());
    std::optional<Tensor> grad_weights = new_grad_weights(weights);
    const Tensor rows = walkable(gate_up), grad_rows = walkable(grad);
    cpu::swiglu_gradient(float_matrix(grad_rows), float_matrix(rows), row_weights(weights),
                         grad_gate_up.mutable_data_ptr(), floats(grad_weights), torch_threads());
    return {grad_gate_up, grad_weights};
}

std::tuple<Tensor, std::optional<Tensor>, Tensor> swiglu_backward(const Tensor& grad, const Tensor& codes,
                                                                  const Tensor& scales,
                                                                  const std::optional<Tensor>& weights) {
    check_backward("swiglu_backward", grad, codes, scales, weights);
    const int64_t m = codes.size(0), columns = codes.size(1);
    Tensor grad_gate_up = new_matrix(grad, m, columns, ScalarType::BFloat16);
    Tensor output = new_matrix(grad, m, columns / 2, ScalarType::BFloat16);
    std::optional<Tensor> grad_weights = new_grad_weights(weights);
    const Tensor rows = walkable(codes), grad_rows = walkable(grad);
    cpu::swiglu_backward(float_matrix(grad_rows), code_matrix(rows, scales, 1), row_weights(weights),
                         words(grad_gate_up), floats(grad_weights), words(output), torch_threads());
    return {grad_gate_up, grad_weights, output};
}

}  // namespace
}  // namespace dse::swiglu

STABLE_TORCH_LIBRARY_FRAGMENT(deepseek_ext, m) {
    m.def("swiglu(Tensor gate_up, Tensor? weights=None) -> Tensor");
    m.def(
        "swiglu_quantize(Tensor gate_up, Tensor? weights=None, *, bool power_of_2=False, bool cache=False) "
        "-> "
        "(Tensor codes, Tensor scales, Tensor? gate_up_codes, Tensor? gate_up_scales)");
    m.def(
        "swiglu_gradient(Tensor grad, Tensor gate_up, Tensor? weights=None) -> "
        "(Tensor grad_gate_up, Tensor? grad_weights)");
    m.def(
        "swiglu_backward(Tensor grad, Tensor gate_up_codes, Tensor gate_up_scales, Tensor? weights=None) -> "
        "(Tensor grad_gate_up, Tensor? grad_weights, Tensor output)");
}

STABLE_TORCH_LIBRARY_IMPL(deepseek_ext, CPU, m) {
    m.impl("swiglu", TORCH_BOX(&dse::swiglu::swiglu));
    m.impl("swiglu_quantize", TORCH_BOX(&dse::swiglu::swiglu_quantize));
    m.impl("swiglu_gradient", TORCH_BOX(&dse::swiglu::swiglu_gradient));
    m.impl("swiglu_backward", TORCH_BOX(&dse::swiglu::swiglu_backward));
}
