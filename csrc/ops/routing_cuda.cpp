// CUDA registration of the routing family.
#include <tuple>

#include "cuda/routing.cuh"
#include "ops/cuda.h"
#include "ops/matrix.h"
#include "ops/routing.h"

namespace dse::routing {
namespace {

const bool* flags(CudaCall& call, const std::optional<Tensor>& valid) {
    return valid ? call.in<bool>(*valid) : nullptr;
}

void check_experts(CudaCall& call, const char* op, const Tensor& indices, int64_t experts) {
    call.check_values<int32_t>(
        indices, [&](const int32_t* values, int64_t count) { require_experts(op, values, count, experts); });
}

std::tuple<Tensor, Tensor, Tensor> route(const Tensor& logits, const Tensor& bias,
                                         const std::optional<Tensor>& valid, int64_t top_k, int64_t n_groups,
                                         int64_t topk_groups, double routed_scaling_factor,
                                         bool norm_topk_prob) {
    require_route(logits, bias, valid, top_k, n_groups, topk_groups);
    CudaCall call("route", logits);
    const RouteOptions options{top_k, n_groups, topk_groups, static_cast<float>(routed_scaling_factor),
                               norm_topk_prob};
    Tensor weights = new_weights(logits, top_k), indices = new_indices(logits, top_k),
           load = new_load(logits);
    Tensor workspace =
        new_tensor(logits, {cuda::route_workspace(logits.size(0), logits.size(1), options)}, ScalarType::Int);
    const Tensor rows = walkable(logits), biases = packed(bias);
    const std::optional<Tensor> counted = packed(valid);
    cuda::route(view(call.in(rows)), call.in<float>(biases), flags(call, counted), options,
                call.out<float>(weights), call.out<int32_t>(indices), call.out<int32_t>(load),
                call.scratch<int32_t>(workspace), call.stream());
    call.finish();
    return {weights, indices, load};
}

Tensor route_backward(const Tensor& grad_weights, const Tensor& logits, const Tensor& indices,
                      double routed_scaling_factor, bool norm_topk_prob) {
    const char* op = "route_backward";
    require_route_backward(grad_weights, logits, indices);
    CudaCall call(op, logits);
    const Tensor rows = walkable(logits), chosen = packed(indices), grads = packed(grad_weights);
    check_experts(call, op, chosen, logits.size(1));
    Tensor grad_logits = new_grad_logits(logits);
    const RouteOptions options{indices.size(1), 1, 1, static_cast<float>(routed_scaling_factor),
                               norm_topk_prob};
    cuda::route_backward(call.in<float>(grads), view(call.in(rows)), call.in<int32_t>(chosen), options,
                         call.out<float>(grad_logits), call.stream());
    call.finish();
    return grad_logits;
}

void update_router_bias_(const Tensor& bias, const Tensor& load, double rate) {
    require_bias_update(bias, load);
    CudaCall call("update_router_bias_", bias);
    const Tensor biases = packed(bias), counts = packed(load);
    const int64_t experts = bias.size(bias.dim() - 1);
    if (experts == 0) return;
    const int64_t routers = bias.numel() / experts;
    float* data = call.inout<float>(biases);
    const auto step = static_cast<float>(rate);
    if (load.scalar_type() == ScalarType::Int)
        cuda::update_router_bias(data, call.in<int32_t>(counts), routers, experts, step, call.stream());
    else
        cuda::update_router_bias(data, call.in<int64_t>(counts), routers, experts, step, call.stream());
    call.finish();
    if (!bias.is_contiguous()) {
        Tensor target = bias;
        torch::stable::copy_(target, biases);
    }
}

// Checked arguments of the balance loss as its launchers take them.
struct Balance {
    Balance(const char* op, const Tensor& logits, const Tensor& indices, const std::optional<Tensor>& valid,
            int64_t num_sequences)
        : call(op, logits),
          rows(walkable(logits)),
          chosen(packed(indices)),
          counted(packed(valid)),
          batch{view(call.in(rows)), call.in<int32_t>(chosen), chosen.size(1), flags(call, counted),
                num_sequences},
          workspace(new_tensor(logits, {cuda::balance_workspace(batch)}, ScalarType::Double)) {
        check_experts(call, op, chosen, logits.size(1));
    }
    CudaCall call;
    Tensor rows, chosen;
    std::optional<Tensor> counted;
    BalanceBatch batch;
    Tensor workspace;
};

Tensor sequence_balance_loss(const Tensor& logits, const Tensor& indices, const std::optional<Tensor>& valid,
                             int64_t num_sequences, double alpha) {
    const char* op = "sequence_balance_loss";
    require_balance(op, logits, indices, valid, num_sequences);
    Balance balance(op, logits, indices, valid, num_sequences);
    CudaCall& call = balance.call;
    Tensor loss = new_tensor(logits, {});
    cuda::sequence_balance_loss(balance.batch, alpha, call.out<float>(loss),
                                call.scratch<double>(balance.workspace), call.stream());
    call.finish();
    return loss;
}

Tensor sequence_balance_loss_backward(const Tensor& grad, const Tensor& logits, const Tensor& indices,
                                      const std::optional<Tensor>& valid, int64_t num_sequences,
                                      double alpha) {
    const char* op = "sequence_balance_loss_backward";
    require_balance(op, logits, indices, valid, num_sequences);
    require_scalar_grad(op, grad);
    Balance balance(op, logits, indices, valid, num_sequences);
    CudaCall& call = balance.call;
    Tensor grad_logits = new_grad_logits(logits);
    cuda::sequence_balance_loss_backward(balance.batch, alpha, call.in<float>(grad),
                                         call.out<float>(grad_logits),
                                         call.scratch<double>(balance.workspace), call.stream());
    call.finish();
    return grad_logits;
}

}  // namespace
}  // namespace dse::routing

DSE_CUDA_KERNELS(m) {
    m.impl("route", TORCH_BOX(&dse::routing::route));
    m.impl("route_backward", TORCH_BOX(&dse::routing::route_backward));
    m.impl("update_router_bias_", TORCH_BOX(&dse::routing::update_router_bias_));
    m.impl("sequence_balance_loss", TORCH_BOX(&dse::routing::sequence_balance_loss));
    m.impl("sequence_balance_loss_backward", TORCH_BOX(&dse::routing::sequence_balance_loss_backward));
}
