// Schemas and CPU registration of the attention family.
#include "ops/attention.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/attention.h"
#include "ops/matrix.h"
#include "ops/new_tensor.h"
#include "ops/parallel.h"

namespace dse::attention {
namespace {

// A result [B, N, T, width] whose heads lie side by side for each token, as the next projection reads them.
Tensor new_heads(const Tensor& like) {
    Tensor x = new_tensor(like, {like.size(0), like.size(2), like.size(1), like.size(3)});
    return torch::stable::transpose(x, 1, 2);
}

cpu::AttentionShape shape_of_heads(const char* op, const Tensor& q, const Tensor& v, double scale,
                                   const std::optional<Tensor>& starts) {
    const int32_t* first = nullptr;
    const int64_t sequences = q.size(0), tokens = q.size(2);
    if (starts) {
        first = static_cast<const int32_t*>(starts->const_data_ptr());
        for (int64_t i = 0; i < sequences * tokens; ++i)
            DSE_REQUIRE(0 <= first[i] && first[i] <= i % tokens, op, ": starts[", i / tokens, ", ",
                        i % tokens, "] must be between 0 and its own position ", i % tokens, ", got ",
                        first[i], "; give the position where the token's document begins");
    }
    return {float_type(q.scalar_type()), sequences, q.size(1), tokens, q.size(3), v.size(3),
            static_cast<float>(scale),   first};
}

std::tuple<Tensor, Tensor> causal_attention(const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                                            const std::optional<Tensor>& starts) {
    check_attention("causal_attention", q, k, v, scale, starts);
    const std::optional<Tensor> list = packed(starts);
    const cpu::AttentionShape shape = shape_of_heads("causal_attention", q, v, scale, list);
    const Tensor q_rows = with_whole_rows(q), k_rows = with_whole_rows(k), v_rows = with_whole_rows(v);
    Tensor out = new_heads(v);
    Tensor logsumexp = new_tensor(q, {q.size(0), q.size(1), q.size(2)}, ScalarType::Float);
    cpu::attention(shape, head_rows(q_rows), head_rows(k_rows), head_rows(v_rows), head_rows(out),
                   static_cast<float*>(logsumexp.mutable_data_ptr()), torch_threads());
    return {out, logsumexp};
}

std::tuple<Tensor, Tensor, Tensor> causal_attention_backward(const Tensor& grad, const Tensor& q,
                                                             const Tensor& k, const Tensor& v,
                                                             const Tensor& out, const Tensor& logsumexp,
                                                             double scale,
                                                             const std::optional<Tensor>& starts) {
    const char* op = "causal_attention_backward";
    check_attention_backward(op, grad, q, k, v, out, logsumexp, scale, starts);
    const std::optional<Tensor> list = packed(starts);
    const cpu::AttentionShape shape = shape_of_heads(op, q, v, scale, list);
    const Tensor q_rows = with_whole_rows(q), k_rows = with_whole_rows(k), v_rows = with_whole_rows(v),
                 grad_rows = with_whole_rows(grad), out_rows = with_whole_rows(out), sums = packed(logsumexp);
    Tensor grad_q = new_heads(q), grad_k = new_heads(k), grad_v = new_heads(v);
    cpu::attention_backward(shape, head_rows(grad_rows), head_rows(q_rows), head_rows(k_rows),
                            head_rows(v_rows), head_rows(out_rows),
                            static_cast<const float*>(sums.const_data_ptr()),
                            {head_rows(grad_q), head_rows(grad_k), head_rows(grad_v)}, torch_threads());
    return {grad_q, grad_k, grad_v};
}

}  // namespace
}  // namespace dse::attention

STABLE_TORCH_LIBRARY_FRAGMENT(deepseek_ext, m) {
    m.def(
        "causal_attention(Tensor q, Tensor k, Tensor v, float scale, Tensor? starts=None) -> "
        "(Tensor out, Tensor logsumexp)");
    m.def(
        "causal_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor logsumexp, "
        "float scale, Tensor? starts=None) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)");
}

STABLE_TORCH_LIBRARY_IMPL(deepseek_ext, CPU, m) {
    m.impl("causal_attention", TORCH_BOX(&dse::attention::causal_attention));
    m.impl("causal_attention_backward", TORCH_BOX(&dse::attention::causal_attention_backward));
}
