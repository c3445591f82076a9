// How a tensor core adds: exactly, or with a short accumulator.
#pragma once
#include <cmath>
#include <cstdint>

namespace ptxsim {

// c + sum of products, rounded once to FP32. The products are given as doubles, which hold them exactly.
//
// fraction_bits == 0: the sum is taken in FP64.
// Otherwise every term is aligned to the largest exponent among them, cut (two's complement: towards minus
// infinity) to this many bits below it, and added; so does the sum.
inline float tensor_sum(double c, const double* products, int count, int64_t fraction_bits) {
    if (fraction_bits == 0) {
        double sum = c;
        for (int i = 0; i < count; ++i) sum += products[i];
        return static_cast<float>(sum);
    }
    double largest = std::fabs(c);
    bool finite = std::isfinite(c);
    for (int i = 0; i < count; ++i) {
        largest = std::fmax(largest, std::fabs(products[i]));
        finite &= std::isfinite(products[i]);
    }
    if (!finite) return tensor_sum(c, products, count, 0);
    if (largest == 0) return static_cast<float>(c);
    const double unit = std::ldexp(1.0, std::ilogb(largest) - static_cast<int>(fraction_bits));
    double sum = std::floor(c / unit);
    for (int i = 0; i < count; ++i) sum += std::floor(products[i] / unit);
    sum *= unit;
    if (sum == 0) return 0.f;
    const double final_unit = std::ldexp(1.0, std::ilogb(sum) - static_cast<int>(fraction_bits));
    return static_cast<float>(std::floor(sum / final_unit) * final_unit);
}

}  // namespace ptxsim
