// The routing family on CUDA: what cpu/routing.h says, with a stream and with memory to work in, which the
// caller allocates. The bits are the CPU's, but of the balance loss, which adds its experts in another order.
//
// Launchers neither allocate nor wait. Indices outside [0, E) are passed over.
#pragma once
#include <cuda_runtime_api.h>

#include "formats/views.h"

namespace dse::cuda {

// How many int32 route() needs to work in: 0 but for thousands of experts.
int64_t route_workspace(int64_t tokens, int64_t experts, const RouteOptions& options);

// weights [T, K], indices [T, K], load [E] of logits and bias [E]; `valid` [T] or null.
void route(const Logits& logits, const float* bias, const bool* valid, const RouteOptions& options,
           float* weights, int32_t* indices, int32_t* load, int32_t* workspace, cudaStream_t stream);

// grad_logits [T, E], from grad_weights and indices [T, K], those of a row different from each other.
void route_backward(const float* grad_weights, const Logits& logits, const int32_t* indices,
                    const RouteOptions& options, float* grad_logits, cudaStream_t stream);

// bias[e] += rate where load[e] is below its mean, -= rate where above. Counts times experts fit int64.
void update_router_bias(float* bias, const int32_t* load, int64_t routers, int64_t experts, float rate,
                        cudaStream_t stream);
void update_router_bias(float* bias, const int64_t* load, int64_t routers, int64_t experts, float rate,
                        cudaStream_t stream);

// How many doubles either of the following needs to work in.
int64_t balance_workspace(const BalanceBatch& batch);

// loss: the mean over sequences of alpha * sum_e f_e P_e.
void sequence_balance_loss(const BalanceBatch& batch, double alpha, float* loss, double* workspace,
                           cudaStream_t stream);

// grad_logits [T, E] = alpha * *grad * the gradient of the mean over sequences of sum_e f_e P_e; zero for
// padding.
void sequence_balance_loss_backward(const BalanceBatch& batch, double alpha, const float* grad,
                                    float* grad_logits, double* workspace, cudaStream_t stream);

}  // namespace dse::cuda
