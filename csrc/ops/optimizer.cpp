// Schema of the optimizer family and its CPU kernel.
#include "ops/optimizer.h"

#include <torch/csrc/stable/library.h>

#include "cpu/optimizer.h"
#include "ops/parallel.h"

namespace dse::optimizer {
namespace {

// Whether x fills a piece of memory without gaps, in whatever order of dimensions.
bool is_dense(const Tensor& x) {
    if (x.is_contiguous()) return true;
    const auto sizes = x.sizes(), strides = x.strides();
    std::vector<std::pair<int64_t, int64_t>> dims;
    for (size_t d = 0; d < sizes.size(); ++d)
        if (sizes[d] != 1) dims.emplace_back(strides[d], sizes[d]);
    std::sort(dims.begin(), dims.end());
    int64_t expected = 1;
    for (const auto& [stride, size] : dims) {
        if (stride != expected) return false;
        expected *= size;
    }
    return true;
}

// Of tensors of one shape: whether element i lies equally far from the first in both.
bool lie_alike(const Tensor& a, const Tensor& b) {
    const auto sizes = a.sizes(), s = a.strides(), t = b.strides();
    for (size_t d = 0; d < sizes.size(); ++d)
        if (sizes[d] > 1 && s[d] != t[d]) return false;
    return true;
}

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
    const bool alike = lie_alike(param, grad) && lie_alike(param, exp_avg) && lie_alike(param, exp_avg_sq);
    if (x.count > 1 && !(alike && is_dense(param))) {
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
    const auto rounded = [](double x) { return static_cast<float>(x); };
    const double steps = static_cast<double>(step);
    const AdamwConstants constants{rounded(grad_scale),
                                   rounded(beta1),
                                   rounded(1 - beta1),
                                   rounded(beta2),
                                   rounded(1 - beta2),
                                   rounded(1 / std::sqrt(1 - std::pow(beta2, steps))),
                                   rounded(eps),
                                   rounded(1 - lr * weight_decay),
                                   rounded(lr / (1 - std::pow(beta1, steps)))};
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
