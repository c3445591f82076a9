// What the routing family requires of its arguments and how it allocates its results, on every device. The
// fakes in deepseek_ext/ops/routing.py state the same requirements in the same words; a test compares the
// two.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "formats/views.h"
#include "ops/new_tensor.h"
#include "ops/require.h"

namespace dse::routing {

inline void require_logits(const char* op, const Tensor& logits) {
    require_float32(op, "logits", logits, "compute the router in float32");
    DSE_REQUIRE(logits.dim() == 2 && logits.size(1) >= 1, op, ": logits must be [T, E] with E >= 1, got ",
                describe(logits), "; flatten the leading dimensions");
}

inline void require_valid(const char* op, const std::optional<Tensor>& valid, int64_t tokens) {
    if (!valid) return;
    DSE_REQUIRE(valid->scalar_type() == ScalarType::Bool, op, ": valid must be bool, got ",
                describe(valid->scalar_type()), "; compare it with 0");
    DSE_REQUIRE(valid->dim() == 1 && valid->size(0) == tokens, op, ": valid must be [T] = [", tokens,
                "], one for each token, got ", describe(*valid), "; flatten it as logits");
}

inline void require_indices(const char* op, const Tensor& indices, int64_t tokens) {
    DSE_REQUIRE(indices.scalar_type() == ScalarType::Int, op, ": indices must be int32, got ",
                describe(indices.scalar_type()), "; pass the indices of route");
    DSE_REQUIRE(indices.dim() == 2 && indices.size(0) == tokens && indices.size(1) >= 1, op,
                ": indices must be [T, K] with T = ", tokens, " as in logits and K >= 1, got ",
                describe(indices), "; pass the indices of route");
}

// Only where values can be read: on the CPU.
inline void require_experts(const char* op, const int32_t* indices, int64_t count, int64_t experts) {
    for (int64_t i = 0; i < count; ++i)
        DSE_REQUIRE(indices[i] >= 0 && indices[i] < experts, op, ": indices must lie in [0, E = ", experts,
                    "), got ", indices[i], "; pass the indices of route");
}

inline void require_route(const Tensor& logits, const Tensor& bias, const std::optional<Tensor>& valid,
                          int64_t top_k, int64_t n_groups, int64_t topk_groups) {
    require_logits("route", logits);
    const int64_t experts = logits.size(1);
    require_float32("route", "bias", bias, "keep the router's bias in float32");
    DSE_REQUIRE(bias.dim() == 1 && bias.size(0) == experts, "route: bias must be [E] = [", experts,
                "], one for each column of logits, got ", describe(bias), "; pass this router's own bias");
    DSE_REQUIRE(n_groups >= 1 && experts % n_groups == 0, "route: n_groups must divide the ", experts,
                " experts into groups of equal size, got ", n_groups, "; choose a divisor");
    DSE_REQUIRE(topk_groups >= 1 && topk_groups <= n_groups,
                "route: topk_groups must lie in [1, n_groups = ", n_groups, "], got ", topk_groups,
                "; n_groups keeps them all");
    const int64_t most = topk_groups * (experts / n_groups);
    DSE_REQUIRE(top_k >= 1 && top_k <= most, "route: top_k must lie in [1, ", most,
                "], the experts of topk_groups = ", topk_groups, " groups, got ", top_k,
                "; choose fewer experts or keep more groups");
    require_valid("route", valid, logits.size(0));
}

inline void require_route_backward(const Tensor& grad_weights, const Tensor& logits, const Tensor& indices) {
    const char* op = "route_backward";
    require_logits(op, logits);
    require_indices(op, indices, logits.size(0));
    DSE_REQUIRE(
        grad_weights.scalar_type() == ScalarType::Float && shape_of(grad_weights) == shape_of(indices), op,
        ": grad_weights must be float32 ", describe(indices), " as indices, got ",
        describe(grad_weights.scalar_type()), " ", describe(grad_weights), "; pass the gradient of weights");
}

inline void require_bias_update(const Tensor& bias, const Tensor& load) {
    const char* op = "update_router_bias_";
    require_float32(op, "bias", bias, "keep the router's bias in float32");
    DSE_REQUIRE(load.scalar_type() == ScalarType::Int || load.scalar_type() == ScalarType::Long, op,
                ": load must be int32 or int64, got ", describe(load.scalar_type()),
                "; pass the token counts of route");
    DSE_REQUIRE(bias.dim() >= 1 && shape_of(load) == shape_of(bias), op,
                ": load must have bias's shape [..., E], got ", describe(load), " and ", describe(bias),
                "; stack the counts of the routers as their biases are");
}

inline void require_balance(const char* op, const Tensor& logits, const Tensor& indices,
                            const std::optional<Tensor>& valid, int64_t num_sequences) {
    require_logits(op, logits);
    const int64_t tokens = logits.size(0);
    require_indices(op, indices, tokens);
    DSE_REQUIRE(num_sequences >= 1 && tokens % num_sequences == 0, op, ": num_sequences must divide the ",
                tokens, " tokens into sequences of equal length, got ", num_sequences,
                "; pad them to one length, with valid = False");
    require_valid(op, valid, tokens);
}

inline void require_scalar_grad(const char* op, const Tensor& grad) {
    DSE_REQUIRE(grad.scalar_type() == ScalarType::Float && grad.dim() == 0, op,
                ": grad must be a float32 scalar, got ", describe(grad.scalar_type()), " ", describe(grad),
                "; pass the gradient of the loss");
}

// Walkable logits.
inline Logits view(const Tensor& logits) {
    return {logits.const_data_ptr<float>(), logits.size(0), logits.size(1), logits.stride(0)};
}

inline Tensor new_weights(const Tensor& logits, int64_t top_k) {
    return new_tensor(logits, {logits.size(0), top_k});
}
inline Tensor new_indices(const Tensor& logits, int64_t top_k) {
    return new_tensor(logits, {logits.size(0), top_k}, ScalarType::Int);
}
inline Tensor new_load(const Tensor& logits) { return new_tensor(logits, {logits.size(1)}, ScalarType::Int); }
inline Tensor new_grad_logits(const Tensor& logits) {
    return new_tensor(logits, {logits.size(0), logits.size(1)});
}

}  // namespace dse::routing
