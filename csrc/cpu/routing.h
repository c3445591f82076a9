// The routing family on the CPU: plain functions over pointers. Every tier gives the same bits, for every
// number of threads.
//
// T tokens, E experts in `groups` groups of equal size, K = top_k experts a token. Results are contiguous.
#pragma once
#include <cstdint>

#include "cpu/parallel.h"
#include "formats/views.h"

namespace dse::cpu {

// weights [T, K], indices [T, K], load [E] of logits and bias [E]; `valid` [T] or null.
void route(const Logits& logits, const float* bias, const bool* valid, const RouteOptions& options,
           float* weights, int32_t* indices, int32_t* load, const ParallelFor& parallel);

// grad_logits [T, E], from grad_weights and indices [T, K], the latter in [0, E) and different in a row.
void route_backward(const float* grad_weights, const Logits& logits, const int32_t* indices,
                    const RouteOptions& options, float* grad_logits, const ParallelFor& parallel);

// bias[e] += rate where load[e] is below its mean, -= rate where above. Counts times experts fit int64.
template <class Count>
void update_router_bias(float* bias, const Count* load, int64_t routers, int64_t experts, float rate) {
    const IeeeScope ieee;
    for (int64_t r = 0; r < routers; ++r, bias += experts, load += experts) {
        int64_t total = 0;
        for (int64_t e = 0; e < experts; ++e) total += load[e];
        for (int64_t e = 0; e < experts; ++e) {
            const int64_t share = static_cast<int64_t>(load[e]) * experts;
            if (share < total) bias[e] += rate;
            if (share > total) bias[e] -= rate;
        }
    }
}

// The mean over sequences of alpha * sum_e f_e P_e.
float sequence_balance_loss(const BalanceBatch& batch, double alpha, const ParallelFor& parallel);

// grad_logits [T, E] = scale * the gradient of the mean over sequences of sum_e f_e P_e; zero for padding.
void sequence_balance_loss_backward(const BalanceBatch& batch, double scale, float* grad_logits,
                                    const ParallelFor& parallel);

}  // namespace dse::cpu
