// What the swiglu family asks of its arguments, on every device; deepseek_ext/ops/swiglu.py says the same of
// fake tensors, in the same words.
#pragma once
#include <optional>

#include "formats/views.h"
#include "ops/quantize.h"

namespace dse::swiglu {

inline void check_gate_up(const char* op, const Tensor& gate_up) {
    require_float(op, "gate_up", gate_up);
    DSE_REQUIRE(gate_up.dim() == 2, op, ": gate_up must be [M, 2I], gate first, then up, got ",
                describe(gate_up), "; flatten the leading dimensions into M");
    DSE_REQUIRE(gate_up.size(1) % 2 == 0, op,
                ": gate_up must be [M, 2I], gate first, then up, got the odd width ", gate_up.size(1),
                "; give gate and up the same width");
}

inline void check_weights(const char* op, const std::optional<Tensor>& weights, int64_t rows) {
    if (!weights) return;
    require_float32(op, "weights", *weights);
    DSE_REQUIRE(weights->dim() == 1 && weights->size(0) == rows, op, ": weights must be [M] = [", rows,
                "], one for each row, got ", describe(*weights), "; pass one number for each row, or None");
}

inline void check_swiglu(const char* op, const Tensor& gate_up, const std::optional<Tensor>& weights) {
    check_gate_up(op, gate_up);
    check_weights(op, weights, gate_up.size(0));
}

inline void check_grad(const char* op, const Tensor& grad, const Tensor& gate_up) {
    const Shape wanted{gate_up.size(0), gate_up.size(1) / 2};
    DSE_REQUIRE(shape_of(grad) == wanted, op, ": grad must be [M, I] = ", describe(wanted), ", got ",
                describe(grad), "; pass the gradient of swiglu's output");
}

inline void check_gradient(const char* op, const Tensor& grad, const Tensor& gate_up,
                           const std::optional<Tensor>& weights) {
    check_gate_up(op, gate_up);
    DSE_REQUIRE(grad.scalar_type() == gate_up.scalar_type(), op, ": grad must have gate_up's dtype ",
                describe(gate_up.scalar_type()), ", got ", describe(grad.scalar_type()),
                "; convert it with .to()");
    check_grad(op, grad, gate_up);
    check_weights(op, weights, gate_up.size(0));
}

inline void check_backward(const char* op, const Tensor& grad, const Tensor& codes, const Tensor& scales,
                           const std::optional<Tensor>& weights) {
    DSE_REQUIRE(codes.scalar_type() == ScalarType::Float8_e4m3fn, op,
                ": gate_up_codes must be float8_e4m3fn, got ", describe(codes.scalar_type()),
                "; make them with swiglu_quantize(..., cache=True)");
    DSE_REQUIRE(codes.dim() == 2 && codes.size(1) % 2 == 0, op, ": gate_up_codes must be [M, 2I], got ",
                describe(codes), "; pass the codes of swiglu_quantize(..., cache=True)");
    require_float32(op, "gate_up_scales", scales, "pass the scales that came with gate_up_codes");
    const Shape wanted{codes.size(0), num_tiles(codes.size(1))};
    DSE_REQUIRE(shape_of(scales) == wanted, op,
                ": gate_up_scales must be [M, ceil(2I/128)] = ", describe(wanted), ", got ", describe(scales),
                "; pass the scales that came with gate_up_codes");
    require_float(op, "grad", grad);
    check_grad(op, grad, codes);
    check_weights(op, weights, codes.size(0));
}

inline Tensor new_matrix(const Tensor& like, int64_t rows, int64_t columns, ScalarType dtype) {
    return new_tensor(like, {rows, columns}, dtype);
}

inline std::optional<Tensor> new_grad_weights(const std::optional<Tensor>& weights) {
    if (!weights) return std::nullopt;
    return new_tensor(*weights, {weights->size(0)}, ScalarType::Float);
}

inline RowWeights row_weights(const std::optional<Tensor>& weights) {
    if (!weights) return {nullptr, 0};
    return {static_cast<const float*>(weights->const_data_ptr()), weights->stride(0)};
}

}  // namespace dse::swiglu
