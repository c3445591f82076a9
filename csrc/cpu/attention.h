// Causal attention on the CPU, without a matrix of scores: plain functions over pointers and strides.
//
// Every head of every sequence by itself: x = scale q k^T, of which query t sees the keys starts[t] .. t;
// out = softmax(x) v, logsumexp = log(sum(exp(x))). Scores, sums and gradients are FP32; in the tiers with
// BF16 instructions the factors of each product are BF16 if q, k and v are. The same bits for any number of
// threads, but not on every tier.
#pragma once
#include <cstdint>

#include "cpu/parallel.h"
#include "formats/views.h"

namespace dse::cpu {

struct AttentionShape {
    FloatType type;  // of all HeadRows
    int64_t sequences, heads, tokens;
    int64_t width, value_width;  // columns of q and k, and of v
    float scale;
    const int32_t* starts;  // [sequences, tokens], each between 0 and its own position; null: all are 0
};

// logsumexp [sequences, heads, tokens].
void attention(const AttentionShape& shape, const HeadRows& q, const HeadRows& k, const HeadRows& v,
               const HeadRows& out, float* logsumexp, const ParallelFor& parallel);

struct AttentionGradients {
    HeadRows q, k, v;
};

// From the gradient of out, and out and logsumexp as forward wrote them.
void attention_backward(const AttentionShape& shape, const HeadRows& grad, const HeadRows& q,
                        const HeadRows& k, const HeadRows& v, const HeadRows& out, const float* logsumexp,
                        const AttentionGradients& gradients, const ParallelFor& parallel);

}  // namespace dse::cpu
