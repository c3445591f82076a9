#include "cpu/rope.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/intrinsics.h"
#include "formats/bf16.h"
#include "formats/e4m3.h"
#include "formats/e5m6.h"
#include "formats/f16.h"
#include "formats/scale.h"
#include "formats/tiles.h"

#define DSE_BODY_WITHOUT_BF16
#define DSE_BODY "cpu/rope.inc"
#include "cpu/foreach_isa.h"

namespace dse::cpu {

void rope_heads(const RopeShape& shape, const HeadRows& q, const HeadRows& kv, const HeadRows& k_rope,
                const HeadRows& k, const ParallelFor& parallel) {
    DSE_SELECT(rope_heads)(shape, q, kv, k_rope, k, parallel);
}

void rope_heads_backward(const RopeShape& shape, const HeadRows& grad_q, const HeadRows& grad_k,
                         const HeadRows& grad_v, const HeadRows& grad_kv, const HeadRows& grad_k_rope,
                         const ParallelFor& parallel) {
    DSE_SELECT(rope_heads_backward)(shape, grad_q, grad_k, grad_v, grad_kv, grad_k_rope, parallel);
}

}  // namespace dse::cpu
