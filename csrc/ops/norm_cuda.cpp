// CUDA registration of the norm family.
#include <tuple>

#include "cuda/norm.cuh"
#include "ops/cuda.h"
#include "ops/matrix.h"
#include "ops/new_tensor.h"
#include "ops/norm.h"

namespace dse::norm {
namespace {

std::tuple<Tensor, Tensor> rms_norm(const Tensor& x, const Tensor& weight, double eps) {
    check_rms_norm(x, weight, eps);
    CudaCall call("rms_norm", x);
    const Tensor rows = walkable(x), factors = packed(weight);
    Tensor out = new_tensor(x, shape_of(x));
    Tensor rstd = new_tensor(x, leading_shape(x), ScalarType::Float);
    cuda::rms_norm(float_matrix(call.in(rows)), call.in<float>(factors), static_cast<float>(eps),
                   call.out<void>(out), call.out<float>(rstd), call.stream());
    call.finish();
    return {out, rstd};
}

Tensor rms_norm_again(const Tensor& x, const Tensor& weight, const Tensor& rstd) {
    check_x("rms_norm_again", x, weight);
    check_rstd("rms_norm_again", rstd, x);
    CudaCall call("rms_norm_again", x);
    const Tensor rows = walkable(x), factors = packed(weight), lengths = packed(rstd);
    Tensor out = new_tensor(x, shape_of(x));
    cuda::rms_norm_again(float_matrix(call.in(rows)), call.in<float>(factors), call.in<float>(lengths),
                         call.out<void>(out), call.stream());
    call.finish();
    return out;
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                             const Tensor& rstd) {
    check_rms_norm_backward(grad, x, weight, rstd);
    CudaCall call("rms_norm_backward", x);
    const Tensor rows = walkable(x), grad_rows = walkable(grad), factors = packed(weight),
                 lengths = packed(rstd);
    Tensor grad_x = new_tensor(x, shape_of(x));
    Tensor grad_weight = new_tensor(weight, shape_of(weight));
    const FloatMatrix matrix = float_matrix(call.in(rows));
    Tensor sums = new_tensor(weight, {cuda::rms_norm_runs(matrix.rows, matrix.columns), matrix.columns});
    cuda::rms_norm_backward(float_matrix(call.in(grad_rows)), matrix, call.in<float>(factors),
                            call.in<float>(lengths), call.out<void>(grad_x), call.out<float>(grad_weight),
                            call.scratch<float>(sums), call.stream());
    call.finish();
    return {grad_x, grad_weight};
}

}  // namespace
}  // namespace dse::norm

DSE_CUDA_KERNELS(m) {
    m.impl("rms_norm", TORCH_BOX(&dse::norm::rms_norm));
    m.impl("rms_norm_again", TORCH_BOX(&dse::norm::rms_norm_again));
    m.impl("rms_norm_backward", TORCH_BOX(&dse::norm::rms_norm_backward));
}
