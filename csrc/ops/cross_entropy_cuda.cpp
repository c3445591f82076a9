// CUDA registration of the cross_entropy family.
#include <tuple>

#include "cuda/cross_entropy.cuh"
#include "ops/cross_entropy.h"
#include "ops/cuda.h"
#include "ops/matrix.h"

namespace dse::cross_entropy {
namespace {

std::tuple<Tensor, Tensor> cross_entropy_(Tensor logits, const Tensor& targets) {
    const char* op = "cross_entropy_";
    check_cross_entropy(op, logits, targets);
    check_adjacent(op, logits);
    CudaCall call(op, logits);
    const Tensor list = packed(targets);
    if (CudaCall::checking())
        check_classes(op, call.values<int64_t>(list).data(), list.numel(), logits.size(1));
    Tensor losses = torch::stable::new_empty(logits, {logits.size(0)}, ScalarType::Float);
    Tensor choices = torch::stable::new_empty(logits, {logits.size(0)}, ScalarType::Long);
    cuda::cross_entropy(float_matrix(call.inout(logits)), call.in<int64_t>(list), call.out<float>(losses),
                        call.out<int64_t>(choices), call.stream());
    call.finish();
    return {losses, choices};
}

}  // namespace
}  // namespace dse::cross_entropy

DSE_CUDA_KERNELS(m) { m.impl("cross_entropy_", TORCH_BOX(&dse::cross_entropy::cross_entropy_)); }
