// Sweeps exp and sigmoid over every `stride`-th of all 2^32 floats, from the first-th on, against double
// precision, and compares every tier bit for bit with the scalar form. Prints one line for each tier, "name
// values different"; then "function largest_error at"; errors are in units of the last place of the exact
// result. Usage: exp_sweep stride [first]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#endif

#include "formats/bf16.h"
#include "formats/e4m3.h"
#include "formats/e5m6.h"
#include "formats/exp.h"
#include "formats/f16.h"
#include "formats/scale.h"
#include "formats/tiles.h"

#define DSE_BODY_WITHOUT_BF16
#define DSE_BODY "exp_sweep.inc"
#include "cpu/foreach_isa.h"

namespace {

constexpr int kBlock = 4096;

struct Results {
    float exps[kBlock], of_x[kBlock], of_minus_x[kBlock];
};

// Infinity counts as 2^128, which is what it is rounded from.
double error_in_ulps(float got, double exact) {
    if (std::isnan(exact)) return std::isnan(got) ? 0 : INFINITY;
    exact = std::min(exact, 0x1p128);
    const double value = std::isinf(got) ? std::copysign(0x1p128, got) : got;
    int exponent;
    std::frexp(exact, &exponent);
    return std::fabs(value - exact) / std::ldexp(1.0, std::max(std::min(exponent, 128) - 24, -149));
}

struct Worst {
    void add(float x, float got, double exact) {
        const double e = error_in_ulps(got, exact);
        if (e > error || std::isnan(e)) error = e, at = x;
    }
    double error = 0;
    float at = 0;
};

double exact_sigmoid(double x) {
    const double e = std::exp(-std::fabs(x));
    return x < 0 ? e / (1 + e) : 1 / (1 + e);
}

int64_t different(const float* a, const float* b, int64_t n) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; ++i)
        count += dse::float_bits(a[i]) != dse::float_bits(b[i]) && !(std::isnan(a[i]) && std::isnan(b[i]));
    return count;
}

}  // namespace

int main(int argc, char** argv) {
    using namespace dse::cpu;
    const uint64_t stride = std::strtoull(argv[1], nullptr, 10);
    uint64_t u = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
    std::vector<std::pair<const char*, Isa>> tiers;
    for (const char* name : {"generic", "avx2", "avx512-novbmi", "avx512"}) {
        try {
            tiers.emplace_back(name, parse_capability(name));
        } catch (const std::invalid_argument&) {
        }
    }
    std::vector<int64_t> differences(tiers.size());
    Worst exps, of_x, of_minus_x;
    static float x[kBlock];
    static Results scalar, other;
    int64_t total = 0;
    while (u < uint64_t{1} << 32) {
        int64_t n = 0;
        for (; n < kBlock && u < uint64_t{1} << 32; u += stride)
            x[n++] = dse::bits_float(static_cast<uint32_t>(u));
        total += n;
        generic::evaluate(x, n, scalar.exps, scalar.of_x, scalar.of_minus_x);
        for (int64_t i = 0; i < n; ++i) {
            exps.add(x[i], scalar.exps[i], std::exp(static_cast<double>(x[i])));
            of_x.add(x[i], scalar.of_x[i], exact_sigmoid(x[i]));
            of_minus_x.add(x[i], scalar.of_minus_x[i], exact_sigmoid(-static_cast<double>(x[i])));
        }
        for (size_t t = 0; t < tiers.size(); ++t) {
            set_current_isa(tiers[t].second);
            DSE_SELECT(evaluate)(x, kBlock, other.exps, other.of_x, other.of_minus_x);
            differences[t] += different(other.exps, scalar.exps, n) + different(other.of_x, scalar.of_x, n) +
                              different(other.of_minus_x, scalar.of_minus_x, n);
        }
    }
    for (size_t t = 0; t < tiers.size(); ++t)
        std::printf("%s %lld %lld\n", tiers[t].first, static_cast<long long>(total),
                    static_cast<long long>(differences[t]));
    std::printf("exp %.4f %a\n", exps.error, exps.at);
    std::printf("sigmoid %.4f %a\n", of_x.error, of_x.at);
    std::printf("sigmoid_of_minus %.4f %a\n", of_minus_x.error, of_minus_x.at);
}
