// Rotary position embedding of multi-head latent attention on CUDA: the functions of cpu/rope.h, with a
// stream and the same bits (of a NaN, that it is one).
//
// Launchers neither allocate nor wait.
#pragma once
#include <cuda_runtime_api.h>

#include "formats/views.h"

namespace dse::cuda {

void rope_heads(const RopeShape& shape, const HeadRows& q, const HeadRows& kv, const HeadRows& k_rope,
                const HeadRows& k, cudaStream_t stream);

void rope_heads_backward(const RopeShape& shape, const HeadRows& grad_q, const HeadRows& grad_k,
                         const HeadRows& grad_v, const HeadRows& grad_kv, const HeadRows& grad_k_rope,
                         cudaStream_t stream);

}  // namespace dse::cuda
