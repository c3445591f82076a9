// Rotary position embedding of multi-head latent attention on the CPU: what happens to queries, keys and
// values between the up-projections and attention.
//
// A head of q [P + R] and of k: P columns without a position, then R that are rotated by pairs, in FP32,
// rounded once. All heads share the R columns of k, which k_rope [R] holds once a token; a head of kv is the
// P columns of its key, then its value [V]. The same bits on every tier and for any number of threads.
#pragma once
#include "cpu/parallel.h"
#include "formats/views.h"

namespace dse::cpu {

// q's last columns are rotated in place; k is written. k_rope has no heads.
void rope_heads(const RopeShape& shape, const HeadRows& q, const HeadRows& kv, const HeadRows& k_rope,
                const HeadRows& k, const ParallelFor& parallel);

// From gradients of q, k and v, of which q's is rotated back in place, those of kv and k_rope: the latter a
// sum over the heads in their order, rounded as each of them is, then rotated back.
void rope_heads_backward(const RopeShape& shape, const HeadRows& grad_q, const HeadRows& grad_k,
                         const HeadRows& grad_v, const HeadRows& grad_kv, const HeadRows& grad_k_rope,
                         const ParallelFor& parallel);

}  // namespace dse::cpu
