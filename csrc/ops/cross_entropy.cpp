// Schema and CPU registration of the cross_entropy family.
#include "ops/cross_entropy.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/cross_entropy.h"
#include "ops/parallel.h"

namespace dse::cross_entropy {
namespace {

std::tuple<Tensor, Tensor> cross_entropy_(Tensor logits, const Tensor& targets) {
    const char* op = "cross_entropy_";
    check_cross_entropy(op, logits, targets);
    const Tensor list = packed(targets);
    const auto* classes = static_cast<const int64_t*>(list.const_data_ptr());
    check_classes(op, classes, list.numel(), logits.size(1));
    Tensor losses = new_losses(logits), choices = new_choices(logits);
    cpu::cross_entropy(written_in_place(logits), classes, static_cast<float*>(losses.mutable_data_ptr()),
                       static_cast<int64_t*>(choices.mutable_data_ptr()), torch_threads());
    return {losses, choices};
}

}  // namespace
}  // namespace dse::cross_entropy

STABLE_TORCH_LIBRARY_FRAGMENT(deepseek_ext, m) {
    m.def("cross_entropy_(Tensor(a!) logits, Tensor targets) -> (Tensor losses, Tensor choices)");
}

STABLE_TORCH_LIBRARY_IMPL(deepseek_ext, CPU, m) {
    m.impl("cross_entropy_", TORCH_BOX(&dse::cross_entropy::cross_entropy_));
}
