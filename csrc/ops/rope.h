// What the rope family asks of its arguments, and how its kernels read them; deepseek_ext/ops/rope.py says
// the same of fake tensors, in the same words.
#pragma once
#include "ops/matrix.h"
#include "ops/new_tensor.h"
#include "ops/require.h"

namespace dse::rope {

inline void check_dtype(const char* op, const char* name, const Tensor& x, const char* first,
                        const Tensor& like) {
    require_float(op, name, x);
    DSE_REQUIRE(x.scalar_type() == like.scalar_type(), op, ": ", name, " must have ", first, "'s dtype ",
                describe(like.scalar_type()), ", got ", describe(x.scalar_type()), "; convert it with .to()");
}

inline void check_written(const char* op, const char* name, const Tensor& x) {
    const int64_t last = x.dim() - 1;
    DSE_REQUIRE(x.size(last) <= 1 || x.stride(last) == 1, op, ": ", name,
                " must have adjacent columns, since it is written in place; call .contiguous()");
    require_own_memory(op, x, name);
}

inline void check_rotation(const char* op, const Tensor& rotation, int64_t tokens, int64_t width,
                           const char* of) {
    DSE_REQUIRE(rotation.scalar_type() == ScalarType::ComplexFloat, op, ": rotation must be complex64, got ",
                describe(rotation.scalar_type()), "; make it with torch.polar(ones, angles)");
    DSE_REQUIRE(rotation.dim() == 2 && rotation.size(0) == tokens, op,
                ": rotation must be [T, R / 2] with T = ", tokens, ", got ", describe(rotation),
                "; give the rotation of each pair at each position");
    DSE_REQUIRE(2 * rotation.size(1) <= width, op, ": rotation must be [T, R / 2] with R at most ", of,
                "'s head width ", width, ", got ", describe(rotation),
                "; the last R columns of a head are rotated");
}

inline void check_rope_heads(const Tensor& q, const Tensor& kv, const Tensor& k_rope, const Tensor& rotation,
                             int64_t heads) {
    const char* op = "rope_heads_";
    check_dtype(op, "q", q, "q", q);
    check_dtype(op, "kv", kv, "q", q);
    check_dtype(op, "k_rope", k_rope, "q", q);
    DSE_REQUIRE(heads > 0, op, ": heads must be positive, got ", heads,
                "; it is how many q holds side by side");
    DSE_REQUIRE(q.dim() == 3 && q.size(2) % heads == 0, op,
                ": q must be [B, T, N * (P + R)] with N = ", heads, " heads, got ", describe(q),
                "; lay the heads of a token side by side");
    check_written(op, "q", q);
    const int64_t width = q.size(2) / heads;
    check_rotation(op, rotation, q.size(1), width, "q");
    const int64_t rotated = 2 * rotation.size(1), plain = width - rotated;
    const std::vector<int64_t> wanted{q.size(0), q.size(1), rotated};
    DSE_REQUIRE(shape_of(k_rope) == wanted, op, ": k_rope must be [B, T, R] = ", describe(wanted), ", got ",
                describe(k_rope), "; it is what all heads of k share");
    DSE_REQUIRE(kv.dim() == 3 && kv.size(0) == q.size(0) && kv.size(1) == q.size(1) &&
                    kv.size(2) % heads == 0 && kv.size(2) / heads >= plain,
                op, ": kv must be [B, T, N * (P + V)] with q's B and T, N = ", heads, " and P = ", plain,
                ", got ", describe(kv), "; a head is the unrotated columns of its key, then its value");
}

inline void check_rope_heads_backward(const Tensor& grad_q, const Tensor& grad_k, const Tensor& grad_v,
                                      const Tensor& rotation) {
    const char* op = "rope_heads_backward_";
    check_dtype(op, "grad_q", grad_q, "grad_q", grad_q);
    check_dtype(op, "grad_k", grad_k, "grad_q", grad_q);
    check_dtype(op, "grad_v", grad_v, "grad_q", grad_q);
    DSE_REQUIRE(grad_q.dim() == 4, op, ": grad_q must be [B, N, T, P + R], got ", describe(grad_q),
                "; put heads before tokens");
    check_written(op, "grad_q", grad_q);
    DSE_REQUIRE(shape_of(grad_k) == shape_of(grad_q), op, ": grad_k must have grad_q's shape ",
                describe(grad_q), ", got ", describe(grad_k), "; pass causal_attention_backward's results");
    DSE_REQUIRE(grad_v.dim() == 4 && grad_v.size(0) == grad_q.size(0) && grad_v.size(1) == grad_q.size(1) &&
                    grad_v.size(2) == grad_q.size(2),
                op, ": grad_v must be [B, N, T, V] with grad_q's B, N and T, got ", describe(grad_v),
                " for grad_q ", describe(grad_q), "; pass causal_attention_backward's results");
    check_rotation(op, rotation, grad_q.size(2), grad_q.size(3), "grad_q");
}

// [B, T, heads * width] with whole rows, as its heads.
inline HeadRows side_by_side(const Tensor& x, int64_t heads) {
    const int64_t width = heads == 0 ? 0 : x.size(2) / heads;
    return {const_cast<void*>(x.const_data_ptr()), x.stride(0), width, x.stride(1)};
}

// Of checked arguments; `rotation` is packed.
inline RopeShape shape_of_heads(const Tensor& q, const Tensor& kv, const Tensor& rotation, int64_t heads) {
    const int64_t rotated = 2 * rotation.size(1), plain = q.size(2) / heads - rotated;
    return {float_type(q.scalar_type()),
            q.size(0),
            q.size(1),
            heads,
            plain,
            rotated,
            kv.size(2) / heads - plain,
            static_cast<const float*>(rotation.const_data_ptr())};
}

inline RopeShape shape_of_gradients(const Tensor& grad_q, const Tensor& grad_v, const Tensor& rotation) {
    const int64_t rotated = 2 * rotation.size(1);
    return {float_type(grad_q.scalar_type()),
            grad_q.size(0),
            grad_q.size(2),
            grad_q.size(1),
            grad_q.size(3) - rotated,
            rotated,
            grad_v.size(3),
            static_cast<const float*>(rotation.const_data_ptr())};
}

// Results: [B, N, T, P + R], the heads of a token side by side; [B, T, N * (P + V)]; [B, T, R].
inline Tensor new_keys(const Tensor& q, int64_t heads) {
    return torch::stable::transpose(new_tensor(q, {q.size(0), q.size(1), heads, q.size(2) / heads}), 1, 2);
}
inline Tensor new_grad_kv(const Tensor& like, const RopeShape& shape) {
    return new_tensor(like, {shape.sequences, shape.tokens, shape.heads * (shape.plain + shape.values)});
}
inline Tensor new_grad_k_rope(const Tensor& like, const RopeShape& shape) {
    return new_tensor(like, {shape.sequences, shape.tokens, shape.rotated});
}

}  // namespace dse::rope
