// Schema of the optimizer family and its CPU kernel.
#include "ops/optimizer.h"

#include <torch/csrc/stable/library.h>

#include "cpu/optimizer.h"
#include "ops/parallel.h"

namespace dse::optimizer {
namespace {

cpu::AdamwTensor describe_parts(const Tensor& param, const Tensor& grad, const Tensor& exp_avg,
                                const Tensor& exp_avg_sq) {
    cpu::AdamwTensor x{
        {static_cast<float*>(param.mutable_data_ptr()), static_cast<const float*>(grad.const_data_ptr()),
         exp_avg.mutable_data_ptr(), exp_avg_sq.mutable_data_ptr()},
        exp_avg.scalar_type() == ScalarType::BFloat16,
        exp_avg_sq.scalar_type() == ScalarType::BFloat16,
        param.numel(),
        {},
        {}};
    if (x.count > 1 && !are_one_run(param, grad, exp_avg, exp_avg_sq)) {
        x.sizes = shape_of(param);
        int part = 0;
        for (const Tensor* tensor : {&param, &grad, &exp_avg, &exp_avg_sq})
            x.strides[part++] = strides_of(*tensor);
    }
    return x;
}

void adamw_step_(const TensorList& params, const TensorList& grads, const TensorList& exp_avgs,
                 const TensorList& exp_avg_sqs, double lr, double beta1, double beta2, double eps,
                 double weight_decay, int64_t step, double grad_scale) {
    check_adamw(params, grads, exp_avgs, exp_avg_sqs, beta1, beta2, eps, step);
    const AdamwConstants constants = adamw_constants(lr, beta1, beta2, eps, weight_decay, step, grad_scale);
    std::vector<cpu::AdamwTensor> tensors;
    tensors.reserve(params.size());
    for (size_t i = 0; i < params.size(); ++i)
        tensors.push_back(describe_parts(params[i], grads[i], exp_avgs[i], exp_avg_sqs[i]));
    cpu::adamw_step(tensors, constants, torch_threads());
}

}  // namespace
}  // namespace dse::optimizer

STABLE_TORCH_LIBRARY_FRAGMENT(deepseek_ext, m) {
    m.def(
        "adamw_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
        "*, float lr, float beta1, float beta2, float eps, float weight_decay, SymInt step, "
        "float grad_scale=1.0) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(deepseek_ext, CPU, m) {
    m.impl("adamw_step_", TORCH_BOX(&dse::optimizer::adamw_step_));
}
