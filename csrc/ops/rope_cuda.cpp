// CUDA registration of the rope family.
#include <tuple>

#include "cuda/rope.cuh"
#include "ops/cuda.h"
#include "ops/rope.h"

namespace dse::rope {
namespace {

Tensor rope_heads_(Tensor q, const Tensor& kv, const Tensor& k_rope, const Tensor& rotation, int64_t heads) {
    check_rope_heads(q, kv, k_rope, rotation, heads);
    CudaCall call("rope_heads_", q);
    const Tensor kv_rows = with_whole_rows(kv), shared = with_whole_rows(k_rope), angles = packed(rotation);
    Tensor k = new_keys(q, heads);
    cuda::rope_heads(shape_of_heads(q, kv, call.in(angles), heads), side_by_side(call.inout(q), heads),
                     side_by_side(call.in(kv_rows), heads), side_by_side(call.in(shared), 1),
                     head_rows(call.out(k)), call.stream());
    call.finish();
    return k;
}

std::tuple<Tensor, Tensor> rope_heads_backward_(Tensor grad_q, const Tensor& grad_k, const Tensor& grad_v,
                                                const Tensor& rotation) {
    check_rope_heads_backward(grad_q, grad_k, grad_v, rotation);
    CudaCall call("rope_heads_backward_", grad_q);
    const Tensor k_rows = with_whole_rows(grad_k), v_rows = with_whole_rows(grad_v),
                 angles = packed(rotation);
    const RopeShape shape = shape_of_gradients(grad_q, grad_v, call.in(angles));
    Tensor grad_kv = new_grad_kv(grad_q, shape), grad_k_rope = new_grad_k_rope(grad_q, shape);
    cuda::rope_heads_backward(shape, head_rows(call.inout(grad_q)), head_rows(call.in(k_rows)),
                              head_rows(call.in(v_rows)), side_by_side(call.out(grad_kv), shape.heads),
                              side_by_side(call.out(grad_k_rope), 1), call.stream());
    call.finish();
    return {grad_kv, grad_k_rope};
}

}  // namespace
}  // namespace dse::rope

DSE_CUDA_KERNELS(m) {
    m.impl("rope_heads_", TORCH_BOX(&dse::rope::rope_heads_));
    m.impl("rope_heads_backward_", TORCH_BOX(&dse::rope::rope_heads_backward_));
}
