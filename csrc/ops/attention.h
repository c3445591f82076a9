// What the attention family asks of its arguments; deepseek_ext/ops/attention.py says the same of fake
// tensors, in the same words.
#pragma once
#include <cmath>
#include <optional>

#include "ops/require.h"

namespace dse::attention {

inline void check_heads(const char* op, const char* name, const Tensor& x, ScalarType dtype) {
    require_float(op, name, x);
    DSE_REQUIRE(x.dim() == 4, op, ": ", name, " must be [B, N, T, width], got ", describe(x),
                "; put heads before tokens");
    DSE_REQUIRE(x.scalar_type() == dtype, op, ": ", name, " must have q's dtype ", describe(dtype), ", got ",
                describe(x.scalar_type()), "; convert it with .to()");
}

inline void check_attention(const char* op, const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                            const std::optional<Tensor>& starts) {
    check_heads(op, "q", q, q.scalar_type());
    check_heads(op, "k", k, q.scalar_type());
    check_heads(op, "v", v, q.scalar_type());
    DSE_REQUIRE(shape_of(k) == shape_of(q), op, ": k must have q's shape ", describe(q), ", got ",
                describe(k), "; repeat keys that heads share with .expand()");
    DSE_REQUIRE(v.size(0) == q.size(0) && v.size(1) == q.size(1) && v.size(2) == q.size(2), op,
                ": v must be [B, N, T, width] with q's B, N and T, got ", describe(v), " for q ", describe(q),
                "; repeat values that heads share with .expand()");
    DSE_REQUIRE(scale > 0 && std::isfinite(scale), op, ": scale must be positive and finite, got ", scale,
                "; a usual one is 1 / sqrt(width)");
    if (!starts) return;
    DSE_REQUIRE(starts->scalar_type() == ScalarType::Int, op, ": starts must be int32, got ",
                describe(starts->scalar_type()), "; convert it with .int()");
    DSE_REQUIRE(starts->dim() == 2 && starts->size(0) == q.size(0) && starts->size(1) == q.size(2), op,
                ": starts must be [B, T] = ", describe(std::vector<int64_t>{q.size(0), q.size(2)}), ", got ",
                describe(*starts), "; give the first position that each token may attend to");
}

inline void check_attention_backward(const char* op, const Tensor& grad, const Tensor& q, const Tensor& k,
                                     const Tensor& v, const Tensor& out, const Tensor& logsumexp,
                                     double scale, const std::optional<Tensor>& starts) {
    check_attention(op, q, k, v, scale, starts);
    check_heads(op, "grad", grad, q.scalar_type());
    check_heads(op, "out", out, q.scalar_type());
    DSE_REQUIRE(shape_of(grad) == shape_of(v), op, ": grad must have v's shape ", describe(v), ", got ",
                describe(grad), "; pass the gradient of causal_attention's first result");
    DSE_REQUIRE(shape_of(out) == shape_of(v), op, ": out must have v's shape ", describe(v), ", got ",
                describe(out), "; pass causal_attention's first result");
    const std::vector<int64_t> wanted{q.size(0), q.size(1), q.size(2)};
    DSE_REQUIRE(logsumexp.scalar_type() == ScalarType::Float && shape_of(logsumexp) == wanted, op,
                ": logsumexp must be float32 [B, N, T] = ", describe(wanted), ", got ",
                describe(logsumexp.scalar_type()), " ", describe(logsumexp),
                "; pass causal_attention's second result");
}

}  // namespace dse::attention
