// Schemas and CPU registration of the routing family.
#include "ops/routing.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/routing.h"
#include "ops/matrix.h"
#include "ops/parallel.h"

namespace dse::routing {
namespace {

const bool* flags(const std::optional<Tensor>& valid) {
    return valid ? valid->const_data_ptr<bool>() : nullptr;
}

std::tuple<Tensor, Tensor, Tensor> route(const Tensor& logits, const Tensor& bias,
                                         const std::optional<Tensor>& valid, int64_t top_k, int64_t n_groups,
                                         int64_t topk_groups, double routed_scaling_factor,
                                         bool norm_topk_prob) {
    require_route(logits, bias, valid, top_k, n_groups, topk_groups);
    Tensor weights = new_weights(logits, top_k), indices = new_indices(logits, top_k),
           load = new_load(logits);
    const Tensor rows = walkable(logits), biases = packed(bias);
    const std::optional<Tensor> counted = packed(valid);
    const RouteOptions options{top_k, n_groups, topk_groups, static_cast<float>(routed_scaling_factor),
                               norm_topk_prob};
    cpu::route(view(rows), biases.const_data_ptr<float>(), flags(counted), options,
               weights.mutable_data_ptr<float>(), indices.mutable_data_ptr<int32_t>(),
               load.mutable_data_ptr<int32_t>(), torch_threads());
    return {weights, indices, load};
}

Tensor route_backward(const Tensor& grad_weights, const Tensor& logits, const Tensor& indices,
                      double routed_scaling_factor, bool norm_topk_prob) {
    require_route_backward(grad_weights, logits, indices);
    const Tensor rows = walkable(logits), chosen = packed(indices), grads = packed(grad_weights);
    require_experts("route_backward", chosen.const_data_ptr<int32_t>(), chosen.numel(), logits.size(1));
    Tensor grad_logits = new_grad_logits(logits);
    const RouteOptions options{indices.size(1), 1, 1, static_cast<float>(routed_scaling_factor),
                               norm_topk_prob};
    cpu::route_backward(grads.const_data_ptr<float>(), view(rows), chosen.const_data_ptr<int32_t>(), options,
                        grad_logits.mutable_data_ptr<float>(), torch_threads());
    return grad_logits;
}

void update_router_bias_(const Tensor& bias, const Tensor& load, double rate) {
    require_bias_update(bias, load);
    Tensor biases = packed(bias);
    const Tensor counts = packed(load);
    const int64_t experts = bias.size(bias.dim() - 1);
    if (experts == 0) return;
    const int64_t routers = bias.numel() / experts;
    float* data = biases.mutable_data_ptr<float>();
    if (load.scalar_type() == ScalarType::Int) {
        cpu::update_router_bias(data, counts.const_data_ptr<int32_t>(), routers, experts,
                                static_cast<float>(rate));
    } else {
        cpu::update_router_bias(data, counts.const_data_ptr<int64_t>(), routers, experts,
                                static_cast<float>(rate));
    }
    if (!bias.is_contiguous()) {
        Tensor target = bias;
        torch::stable::copy_(target, biases);
    }
}

// Checked arguments of the balance loss, readable in place.
struct Balance {
    Balance(const char* op, const Tensor& logits, const Tensor& indices, const std::optional<Tensor>& valid,
            int64_t num_sequences)
        : sequences(num_sequences) {
        require_balance(op, logits, indices, valid, num_sequences);
        rows = walkable(logits);
        chosen = packed(indices);
        counted = packed(valid);
        require_experts(op, chosen.const_data_ptr<int32_t>(), chosen.numel(), logits.size(1));
    }
    BalanceBatch batch() const {
        return {view(rows), chosen.const_data_ptr<int32_t>(), chosen.size(1), flags(counted), sequences};
    }
    Tensor rows, chosen;
    std::optional<Tensor> counted;
    int64_t sequences;
};

Tensor sequence_balance_loss(const Tensor& logits, const Tensor& indices, const std::optional<Tensor>& valid,
                             int64_t num_sequences, double alpha) {
    const Balance balance("sequence_balance_loss", logits, indices, valid, num_sequences);
    Tensor loss = new_tensor(logits, {});
    *loss.mutable_data_ptr<float>() = cpu::sequence_balance_loss(balance.batch(), alpha, torch_threads());
    return loss;
}

Tensor sequence_balance_loss_backward(const Tensor& grad, const Tensor& logits, const Tensor& indices,
                                      const std::optional<Tensor>& valid, int64_t num_sequences,
                                      double alpha) {
    const char* op = "sequence_balance_loss_backward";
    const Balance balance(op, logits, indices, valid, num_sequences);
    require_scalar_grad(op, grad);
    Tensor grad_logits = new_grad_logits(logits);
    cpu::sequence_balance_loss_backward(balance.batch(), alpha * *grad.const_data_ptr<float>(),
                                        grad_logits.mutable_data_ptr<float>(), torch_threads());
    return grad_logits;
}

}  // namespace
}  // namespace dse::routing

// Where autograd passes a tensor it must be positional: torch.library.register_autograd takes no other.
STABLE_TORCH_LIBRARY_FRAGMENT(deepseek_ext, m) {
    m.def(
        "route(Tensor logits, Tensor bias, Tensor? valid=None, *, SymInt top_k, SymInt n_groups, "
        "SymInt topk_groups, float routed_scaling_factor, bool norm_topk_prob=True) -> "
        "(Tensor weights, Tensor indices, Tensor load)");
    m.def(
        "route_backward(Tensor grad_weights, Tensor logits, Tensor indices, *, float routed_scaling_factor, "
        "bool norm_topk_prob) -> Tensor");
    m.def("update_router_bias_(Tensor(a!) bias, Tensor load, float rate) -> ()");
    m.def(
        "sequence_balance_loss(Tensor logits, Tensor indices, Tensor? valid=None, *, SymInt num_sequences, "
        "float alpha) -> Tensor");
    m.def(
        "sequence_balance_loss_backward(Tensor grad, Tensor logits, Tensor indices, Tensor? valid=None, *, "
        "SymInt num_sequences, float alpha) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(deepseek_ext, CPU, m) {
    m.impl("route", TORCH_BOX(&dse::routing::route));
    m.impl("route_backward", TORCH_BOX(&dse::routing::route_backward));
    m.impl("update_router_bias_", TORCH_BOX(&dse::routing::update_router_bias_));
    m.impl("sequence_balance_loss", TORCH_BOX(&dse::routing::sequence_balance_loss));
    m.impl("sequence_balance_loss_backward", TORCH_BOX(&dse::routing::sequence_balance_loss_backward));
}
