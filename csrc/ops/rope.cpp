// Schemas and CPU registration of the rope family.
#include "ops/rope.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/rope.h"
#include "ops/parallel.h"

namespace dse::rope {
namespace {

Tensor rope_heads_(Tensor q, const Tensor& kv, const Tensor& k_rope, const Tensor& rotation, int64_t heads) {
    check_rope_heads(q, kv, k_rope, rotation, heads);
    const Tensor kv_rows = with_whole_rows(kv), shared = with_whole_rows(k_rope), angles = packed(rotation);
    Tensor k = new_keys(q, heads);
    cpu::rope_heads(shape_of_heads(q, kv, angles, heads), side_by_side(q, heads),
                    side_by_side(kv_rows, heads), side_by_side(shared, 1), head_rows(k), torch_threads());
    return k;
}

std::tuple<Tensor, Tensor> rope_heads_backward_(Tensor grad_q, const Tensor& grad_k, const Tensor& grad_v,
                                                const Tensor& rotation) {
    check_rope_heads_backward(grad_q, grad_k, grad_v, rotation);
    const Tensor k_rows = with_whole_rows(grad_k), v_rows = with_whole_rows(grad_v),
                 angles = packed(rotation);
    const RopeShape shape = shape_of_gradients(grad_q, grad_v, angles);
    Tensor grad_kv = new_grad_kv(grad_q, shape), grad_k_rope = new_grad_k_rope(grad_q, shape);
    cpu::rope_heads_backward(shape, head_rows(grad_q), head_rows(k_rows), head_rows(v_rows),
                             side_by_side(grad_kv, shape.heads), side_by_side(grad_k_rope, 1),
                             torch_threads());
    return {grad_kv, grad_k_rope};
}

}  // namespace
}  // namespace dse::rope

STABLE_TORCH_LIBRARY_FRAGMENT(deepseek_ext, m) {
    m.def("rope_heads_(Tensor(a!) q, Tensor kv, Tensor k_rope, Tensor rotation, int heads) -> Tensor");
    m.def(
        "rope_heads_backward_(Tensor(a!) grad_q, Tensor grad_k, Tensor grad_v, Tensor rotation) -> "
        "(Tensor grad_kv, Tensor grad_k_rope)");
}

STABLE_TORCH_LIBRARY_IMPL(deepseek_ext, CPU, m) {
    m.impl("rope_heads_", TORCH_BOX(&dse::rope::rope_heads_));
    m.impl("rope_heads_backward_", TORCH_BOX(&dse::rope::rope_heads_backward_));
}
