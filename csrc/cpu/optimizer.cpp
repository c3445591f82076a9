#include "cpu/optimizer.h"

#include <algorithm>
#include <cmath>

#include "formats/bf16.h"

// BF16 instructions flush subnormals and would give other bits.
#define DSE_BODY_WITHOUT_BF16
#define DSE_BODY "cpu/optimizer.inc"
#include "cpu/foreach_isa.h"

namespace dse::cpu {
namespace {

void* moment_at(void* moments, bool bf16, int64_t i) {
    return bf16 ? static_cast<void*>(static_cast<Bf16*>(moments) + i)
                : static_cast<void*>(static_cast<float*>(moments) + i);
}

AdamwPointers offset(const AdamwTensor& x, const int64_t (&by)[4]) {
    return {x.at.param + by[0], x.at.grad + by[1], moment_at(x.at.exp_avg, x.bf16_exp_avg, by[2]),
            moment_at(x.at.exp_avg_sq, x.bf16_exp_avg_sq, by[3])};
}

void copy_moment(void* to, const void* from, bool bf16) {
    if (bf16) {
        *static_cast<Bf16*>(to) = *static_cast<const Bf16*>(from);
    } else {
        *static_cast<float*>(to) = *static_cast<const float*>(from);
    }
}

// Elements [begin, end), counted in the order of the dimensions, of a tensor whose four parts lie in memory
// in different ways: brought together a piece at a time, and put back.
template <class Run>
void run_strided(const AdamwTensor& x, int64_t begin, int64_t end, const Run& run) {
    constexpr int64_t kPiece = 256;
    float param[kPiece], grad[kPiece];
    alignas(float) unsigned char exp_avg[4 * kPiece], exp_avg_sq[4 * kPiece];
    AdamwPointers elements[kPiece];
    const AdamwPointers piece{param, grad, exp_avg, exp_avg_sq};
    for (; begin < end; begin += kPiece) {
        const int64_t count = std::min(kPiece, end - begin);
        for (int64_t i = 0; i < count; ++i) {
            int64_t left = begin + i, by[4] = {};
            for (size_t d = x.sizes.size(); d-- > 0; left /= x.sizes[d])
                for (int part = 0; part < 4; ++part) by[part] += left % x.sizes[d] * x.strides[part][d];
            elements[i] = offset(x, by);
            param[i] = *elements[i].param;
            grad[i] = *elements[i].grad;
            copy_moment(moment_at(exp_avg, x.bf16_exp_avg, i), elements[i].exp_avg, x.bf16_exp_avg);
            copy_moment(moment_at(exp_avg_sq, x.bf16_exp_avg_sq, i), elements[i].exp_avg_sq,
                        x.bf16_exp_avg_sq);
        }
        run(piece, count);
        for (int64_t i = 0; i < count; ++i) {
            *elements[i].param = param[i];
            copy_moment(elements[i].exp_avg, moment_at(exp_avg, x.bf16_exp_avg, i), x.bf16_exp_avg);
            copy_moment(elements[i].exp_avg_sq, moment_at(exp_avg_sq, x.bf16_exp_avg_sq, i),
                        x.bf16_exp_avg_sq);
        }
    }
}

}  // namespace

void adamw_step(const std::vector<AdamwTensor>& tensors, const AdamwConstants& constants,
                const ParallelFor& parallel) {
    // All tensors' elements make one range: a hundred small ones cost no more than a large one.
    std::vector<int64_t> ends;
    ends.reserve(tensors.size());
    int64_t total = 0;
    for (const AdamwTensor& x : tensors) ends.push_back(total += x.count);
    const auto adamw_run = DSE_SELECT(adamw_run);
    parallel(total, kThreadElements, [&](int64_t begin, int64_t end) {
        size_t i = std::upper_bound(ends.begin(), ends.end(), begin) - ends.begin();
        for (; begin < end; begin = ends[i++]) {
            const AdamwTensor& x = tensors[i];
            const int64_t start = ends[i] - x.count, first = begin - start;
            const int64_t last = std::min(end - start, x.count);
            const auto run = [&](const AdamwPointers& at, int64_t count) {
                adamw_run(constants, at, x.bf16_exp_avg, x.bf16_exp_avg_sq, count);
            };
            if (x.sizes.empty()) {
                run(offset(x, {first, first, first, first}), last - first);
            } else {
                run_strided(x, first, last, run);
            }
        }
    });
}

}  // namespace dse::cpu
