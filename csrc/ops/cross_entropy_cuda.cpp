// CUDA registration of the cross_entropy family.
#include <tuple>

#include "cuda/cross_entropy.cuh"
#include "ops/cross_entropy.h"
#include "ops/cuda.h"

namespace dse::cross_entropy {
namespace {

std::tuple<Tensor, Tensor> cross_entropy_(Tensor logits, const Tensor& targets) {
    const char* op = "cross_entropy_";
    check_cross_entropy(op, logits, targets);
    CudaCall call(op, logits);
    const Tensor list = packed(targets);
    call.check_values<int64_t>(list, [&](const int64_t* classes, int64_t count) {
        check_classes(op, classes, count, logits.size(1));
    });
    Tensor losses = new_losses(logits), choices = new_choices(logits);
    cuda::cross_entropy(written_in_place(call.inout(logits)), call.in<int64_t>(list), call.out<float>(losses),
                        call.out<int64_t>(choices), call.stream());
    call.finish();
    return {losses, choices};
}

}  // namespace
}  // namespace dse::cross_entropy

DSE_CUDA_KERNELS(m) { m.impl("cross_entropy_", TORCH_BOX(&dse::cross_entropy::cross_entropy_)); }
