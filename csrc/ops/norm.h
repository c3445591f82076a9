// What the norm family asks of its arguments; deepseek_ext/ops/norm.py says the same of fake tensors, in the
// same words.
#pragma once
#include <cmath>

#include "ops/require.h"

namespace dse::norm {

inline void check_x(const char* op, const Tensor& x, const Tensor& weight) {
    require_float(op, "x", x);
    DSE_REQUIRE(x.dim() >= 1 && x.size(x.dim() - 1) > 0, op, ": x must be [..., K] with K > 0, got ",
                describe(x), "; there is nothing to normalise");
    require_float32(op, "weight", weight);
    DSE_REQUIRE(weight.dim() == 1 && weight.size(0) == x.size(x.dim() - 1), op,
                ": weight must be [K] = ", describe(std::vector<int64_t>{x.size(x.dim() - 1)}), ", got ",
                describe(weight), "; pass one number for each column of x");
}

// [...] for x [..., K].
inline std::vector<int64_t> leading_shape(const Tensor& x) {
    std::vector<int64_t> shape = shape_of(x);
    shape.pop_back();
    return shape;
}

inline void check_rstd(const char* op, const Tensor& rstd, const Tensor& x) {
    const std::vector<int64_t> wanted = leading_shape(x);
    require_float32(op, "rstd", rstd);
    DSE_REQUIRE(shape_of(rstd) == wanted, op, ": rstd must be [...] = ", describe(wanted), ", got ",
                describe(rstd), "; pass rms_norm's second result");
}

inline void check_rms_norm(const Tensor& x, const Tensor& weight, double eps) {
    check_x("rms_norm", x, weight);
    DSE_REQUIRE(eps >= 0 && std::isfinite(eps), "rms_norm: eps must be finite and not negative, got ", eps,
                "; a usual one is 1e-6");
}

inline void check_rms_norm_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                    const Tensor& rstd) {
    const char* op = "rms_norm_backward";
    check_x(op, x, weight);
    check_rstd(op, rstd, x);
    DSE_REQUIRE(grad.scalar_type() == x.scalar_type(), op, ": grad must have x's dtype ",
                describe(x.scalar_type()), ", got ", describe(grad.scalar_type()), "; convert it with .to()");
    DSE_REQUIRE(shape_of(grad) == shape_of(x), op, ": grad must have x's shape ", describe(x), ", got ",
                describe(grad), "; pass the gradient of rms_norm's first result");
}

}  // namespace dse::norm
