// Schemas and CPU registration of the norm family.
#include "ops/norm.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cpu/norm.h"
#include "ops/matrix.h"
#include "ops/new_tensor.h"
#include "ops/parallel.h"

namespace dse::norm {
namespace {

const float* floats(const Tensor& x) { return static_cast<const float*>(x.const_data_ptr()); }

std::tuple<Tensor, Tensor> rms_norm(const Tensor& x, const Tensor& weight, double eps) {
    check_rms_norm(x, weight, eps);
    const Tensor rows = walkable(x), factors = packed(weight);
    Tensor out = new_tensor(x, shape_of(x));
    Tensor rstd = new_tensor(x, leading_shape(x), ScalarType::Float);
    cpu::rms_norm(float_matrix(rows), floats(factors), static_cast<float>(eps), out.mutable_data_ptr(),
                  static_cast<float*>(rstd.mutable_data_ptr()), torch_threads());
    return {out, rstd};
}

Tensor rms_norm_again(const Tensor& x, const Tensor& weight, const Tensor& rstd) {
    check_x("rms_norm_again", x, weight);
    check_rstd("rms_norm_again", rstd, x);
    const Tensor rows = walkable(x), factors = packed(weight), lengths = packed(rstd);
    Tensor out = new_tensor(x, shape_of(x));
    cpu::rms_norm_again(float_matrix(rows), floats(factors), floats(lengths), out.mutable_data_ptr(),
                        torch_threads());
    return out;
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                             const Tensor& rstd) {
    check_rms_norm_backward(grad, x, weight, rstd);
    const Tensor rows = walkable(x), grad_rows = walkable(grad), factors = packed(weight),
                 lengths = packed(rstd);
    Tensor grad_x = new_tensor(x, shape_of(x));
    Tensor grad_weight = new_tensor(weight, shape_of(weight));
    cpu::rms_norm_backward(float_matrix(grad_rows), float_matrix(rows), floats(factors), floats(lengths),
                           grad_x.mutable_data_ptr(), static_cast<float*>(grad_weight.mutable_data_ptr()),
                           torch_threads());
    return {grad_x, grad_weight};
}

}  // namespace
}  // namespace dse::norm

STABLE_TORCH_LIBRARY_FRAGMENT(deepseek_ext, m) {
    m.def("rms_norm(Tensor x, Tensor weight, float eps) -> (Tensor out, Tensor rstd)");
    m.def("rms_norm_again(Tensor x, Tensor weight, Tensor rstd) -> Tensor");
    m.def(
        "rms_norm_backward(Tensor grad, Tensor x, Tensor weight, Tensor rstd) -> "
        "(Tensor grad_x, Tensor grad_weight)");
}

STABLE_TORCH_LIBRARY_IMPL(deepseek_ext, CPU, m) {
    m.impl("rms_norm", TORCH_BOX(&dse::norm::rms_norm));
    m.impl("rms_norm_again", TORCH_BOX(&dse::norm::rms_norm_again));
    m.impl("rms_norm_backward", TORCH_BOX(&dse::norm::rms_norm_backward));
}
