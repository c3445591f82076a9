#include "cpu/norm.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/intrinsics.h"
#include "formats/bf16.h"
#include "formats/e4m3.h"
#include "formats/e5m6.h"
#include "formats/exp.h"
#include "formats/f16.h"
#include "formats/scale.h"
#include "formats/tiles.h"

namespace dse::cpu {
namespace {

// Rows that are added up to a weight's gradient before their sum is.
constexpr int64_t kRun = 64;

}  // namespace
}  // namespace dse::cpu

#define DSE_BODY_WITHOUT_BF16
#define DSE_BODY "cpu/norm.inc"
#include "cpu/foreach_isa.h"

namespace dse::cpu {

void rms_norm(const FloatMatrix& x, const float* weight, float eps, void* out, float* rstd,
              const ParallelFor& parallel) {
    DSE_SELECT(rms_norm)(x, weight, eps, out, rstd, parallel);
}

void rms_norm_again(const FloatMatrix& x, const float* weight, const float* rstd, void* out,
                    const ParallelFor& parallel) {
    DSE_SELECT(rms_norm_again)(x, weight, rstd, out, parallel);
}

void rms_norm_backward(const FloatMatrix& grad, const FloatMatrix& x, const float* weight, const float* rstd,
                       void* grad_x, float* grad_weight, const ParallelFor& parallel) {
    // One row of sums for each run; with none the gradient is zero.
    const int64_t runs = (x.rows + kRun - 1) / kRun;
    std::vector<float> sums(runs * x.columns);
    DSE_SELECT(rms_norm_backward)(grad, x, weight, rstd, grad_x, sums.data(), parallel);
    std::fill(grad_weight, grad_weight + x.columns, 0.0f);
    for (int64_t run = 0; run < runs; ++run)
        for (int64_t c = 0; c < x.columns; ++c) grad_weight[c] += sums[run * x.columns + c];
}

}  // namespace dse::cpu
