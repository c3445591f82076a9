// What the optimizer family requires of its arguments on every device, and the numbers of a step. The fake in
// deepseek_ext/ops/optimizer.py states the same requirements in the same words; a test compares the two.
#pragma once
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string>
#include <vector>

#include "formats/views.h"
#include "ops/require.h"

namespace dse::optimizer {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using TensorList = std::vector<Tensor>;

// The shortest decimal number that reads back as x, written as Python writes it.
inline std::string describe_number(double x) {
    char text[32];
    const auto written = [&](std::chars_format format) {
        return std::string(text, std::to_chars(text, text + sizeof text, x, format).ptr);
    };
    if (!std::isfinite(x)) return std::isnan(x) ? "nan" : x < 0 ? "-inf" : "inf";
    const std::string scientific = written(std::chars_format::scientific);
    const int exponent = std::stoi(scientific.substr(scientific.find('e') + 1));
    if (exponent < -4 || exponent >= 16) return scientific;
    const std::string fixed = written(std::chars_format::fixed);
    return fixed.find('.') == std::string::npos ? fixed + ".0" : fixed;
}

inline bool same_shape(const Tensor& a, const Tensor& b) {
    const auto s = a.sizes(), t = b.sizes();
    return std::equal(s.begin(), s.end(), t.begin(), t.end());
}

enum class Stored { kFloat, kFloatOrBf16 };

inline void check_list(const char* name, const TensorList& tensors, const TensorList& params, Stored as,
                       bool written) {
    DSE_REQUIRE(tensors.size() == params.size(), "adamw_step_: ", name, " must hold ", params.size(),
                " tensors like params, got ", tensors.size(),
                "; leave a parameter without gradient out of all lists");
    for (size_t i = 0; i < tensors.size(); ++i) {
        const Tensor& x = tensors[i];
        const ScalarType dtype = x.scalar_type();
        const bool right =
            dtype == ScalarType::Float || (as == Stored::kFloatOrBf16 && dtype == ScalarType::BFloat16);
        DSE_REQUIRE(right, "adamw_step_: ", name, "[", i, "] must be ",
                    as == Stored::kFloat ? "float32" : "bfloat16 or float32", ", got ", describe(dtype),
                    "; convert it with .float()");
        DSE_REQUIRE(same_shape(x, params[i]), "adamw_step_: ", name, "[", i,
                    "] must have the shape of params[", i, "], ", describe(params[i]), ", got ", describe(x),
                    "; keep the lists in one order");
        if (written) require_own_memory("adamw_step_", x, name, "[", i, "]");
    }
}

inline void check_adamw(const TensorList& params, const TensorList& grads, const TensorList& exp_avgs,
                        const TensorList& exp_avg_sqs, double beta1, double beta2, double eps, int64_t step) {
    check_list("params", params, params, Stored::kFloat, true);
    check_list("grads", grads, params, Stored::kFloat, false);
    check_list("exp_avgs", exp_avgs, params, Stored::kFloatOrBf16, true);
    check_list("exp_avg_sqs", exp_avg_sqs, params, Stored::kFloatOrBf16, true);
    const auto check_beta = [](const char* name, double beta) {
        DSE_REQUIRE(beta >= 0 && beta < 1, "adamw_step_: ", name, " must lie in [0, 1), got ",
                    describe_number(beta), "; 0.9 to 0.999 are usual");
    };
    check_beta("beta1", beta1);
    check_beta("beta2", beta2);
    DSE_REQUIRE(eps >= 0, "adamw_step_: eps must not be negative, got ", describe_number(eps),
                "; 1e-8 is usual");
    DSE_REQUIRE(step >= 1, "adamw_step_: step must be at least 1, got ", step, "; count the first step as 1");
}

// Whether x fills a piece of memory without gaps, in whatever order of dimensions.
inline bool is_dense(const Tensor& x) {
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
inline bool lie_alike(const Tensor& a, const Tensor& b) {
    const auto sizes = a.sizes(), s = a.strides(), t = b.strides();
    for (size_t d = 0; d < sizes.size(); ++d)
        if (sizes[d] > 1 && s[d] != t[d]) return false;
    return true;
}

// Whether element i of each lies i places behind its first, in one order of elements.
inline bool are_one_run(const Tensor& param, const Tensor& grad, const Tensor& exp_avg,
                        const Tensor& exp_avg_sq) {
    return lie_alike(param, grad) && lie_alike(param, exp_avg) && lie_alike(param, exp_avg_sq) &&
           is_dense(param);
}

inline AdamwConstants adamw_constants(double lr, double beta1, double beta2, double eps, double weight_decay,
                                      int64_t step, double grad_scale) {
    const auto rounded = [](double x) { return static_cast<float>(x); };
    const double steps = static_cast<double>(step);
    return {rounded(grad_scale),
            rounded(beta1),
            rounded(1 - beta1),
            rounded(beta2),
            rounded(1 - beta2),
            rounded(1 / std::sqrt(1 - std::pow(beta2, steps))),
            rounded(eps),
            rounded(1 - lr * weight_decay),
            rounded(lr / (1 - std::pow(beta1, steps)))};
}

}  // namespace dse::optimizer
