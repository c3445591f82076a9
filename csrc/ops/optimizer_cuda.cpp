// CUDA registration of the optimizer family.
#include <torch/csrc/stable/ops.h>

#include "cuda/optimizer.cuh"
#include "ops/cuda.h"
#include "ops/optimizer.h"

namespace dse::optimizer {
namespace {

// The tensors of a step as the kernel takes them. What does not lie in memory alike is brought together in
// contiguous copies, from which put_back() returns the results.
class Parts {
  public:
    void add(CudaCall& call, const Tensor& param, const Tensor& grad, const Tensor& exp_avg,
             const Tensor& exp_avg_sq) {
        if (param.numel() == 0) return;
        const bool together = param.numel() == 1 || are_one_run(param, grad, exp_avg, exp_avg_sq);
        const auto written = [&](const Tensor& x) { return together ? x : copy_of(x); };
        const Tensor p = written(param), m = written(exp_avg), v = written(exp_avg_sq);
        const Tensor g = together ? grad : torch::stable::contiguous(grad);
        tensors_.push_back(
            {{call.inout<float>(p), call.in<float>(g), call.inout<void>(m), call.inout<void>(v)},
             m.scalar_type() == ScalarType::BFloat16,
             v.scalar_type() == ScalarType::BFloat16,
             p.numel()});
        read_.push_back(g);
    }

    const std::vector<cuda::AdamwTensor>& tensors() const { return tensors_; }

    void put_back() {
        for (auto& [original, copy] : copies_) torch::stable::copy_(original, copy);
    }

  private:
    struct Copy {
        Tensor original, copy;
    };

    Tensor copy_of(const Tensor& x) {
        if (x.is_contiguous()) return x;
        copies_.push_back({x, torch::stable::contiguous(x)});
        return copies_.back().copy;
    }

    std::vector<cuda::AdamwTensor> tensors_;
    std::vector<Tensor> read_;  // keeps copies of gradients until the launch
    std::vector<Copy> copies_;
};

void adamw_step_(const TensorList& params, const TensorList& grads, const TensorList& exp_avgs,
                 const TensorList& exp_avg_sqs, double lr, double beta1, double beta2, double eps,
                 double weight_decay, int64_t step, double grad_scale) {
    check_adamw(params, grads, exp_avgs, exp_avg_sqs, beta1, beta2, eps, step);
    if (params.empty()) return;
    CudaCall call("adamw_step_", params[0]);
    Parts parts;
    for (size_t i = 0; i < params.size(); ++i)
        parts.add(call, params[i], grads[i], exp_avgs[i], exp_avg_sqs[i]);
    cuda::adamw_step(parts.tensors(), adamw_constants(lr, beta1, beta2, eps, weight_decay, step, grad_scale),
                     call.stream());
    call.finish();
    parts.put_back();
}

}  // namespace
}  // namespace dse::optimizer

DSE_CUDA_KERNELS(m) { m.impl("adamw_step_", TORCH_BOX(&dse::optimizer::adamw_step_)); }
