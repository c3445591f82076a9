// Scores, choices, weights and their gradient; the bias update.
//
// A warp takes a token. Its choices lie in shared memory as keys (formats/routing.h), expert e being lane
// e % 32's, and K times the largest is found and struck out: a lane looks through its own E / 32 keys, two
// warp reductions give the largest key and the lowest index that has it. Bound by the issue of instructions,
// not by memory: 256 experts of which 8 are chosen take 2400 of PTX and move 1 KB.
#include "cuda/fill.cuh"
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/routing.cuh"
#include "cuda/warp.cuh"
#include "formats/exp.h"
#include "formats/routing.h"

namespace dse::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarpsPerBlock = kThreads / kWarpSize;
constexpr int64_t kSharedBytes = 48 << 10;     // what every GPU gives without being asked for more
constexpr int64_t kWarpsWithWorkspace = 1024;  // at once, where rows do not fit into shared memory

// The first token of this thread's warp, and the step to the next.
__device__ int64_t first_token() {
    return static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarpSize) + threadIdx.x / kWarpSize;
}
__device__ int64_t token_step() { return static_cast<int64_t>(gridDim.x) * (blockDim.x / kWarpSize); }

// What a warp keeps of its token: a key an expert, a key a group if some are dropped, and of the chosen
// experts index and score.
struct TokenRow {
    static int64_t words(int64_t experts, const RouteOptions& o) {
        return experts + (o.kept_groups < o.groups ? o.groups : 0) + 2 * o.top_k;
    }
    __device__ TokenRow(int32_t* memory, int experts, const RouteOptions& o)
        : keys(memory),
          chosen(memory + experts),
          scores(reinterpret_cast<float*>(chosen + o.top_k)),
          group_keys(chosen + 2 * o.top_k) {}
    int32_t* keys;
    int32_t* chosen;
    float* scores;
    int32_t* group_keys;
};

// The key of the sum of the two largest of n choices, or of the only one; by a whole warp.
__device__ int32_t group_key(const int32_t* keys, int n, int lane) {
    int32_t best = kPaddingKey, next = kPaddingKey;  // of this lane
    for (int i = lane; i < n; i += kWarpSize) {
        next = max(next, min(best, keys[i]));
        best = max(best, keys[i]);
    }
    const int32_t first = __reduce_max_sync(kAllLanes, best);
    // One lane that has the largest puts its second one forward.
    const bool gives_way = lane == __ffs(__ballot_sync(kAllLanes, best == first)) - 1;
    const int32_t second = __reduce_max_sync(kAllLanes, gives_way ? next : best);
    return n == 1 ? first : key_of(choice_of(first) + choice_of(second));
}

// The experts of all but the best `kept` groups rank as -inf.
__device__ void drop_groups(const TokenRow& row, int experts, int groups, int kept, int lane) {
    const int size = experts / groups;
    for (int g = 0; g < groups; ++g) {
        const int32_t key = group_key(row.keys + g * size, size, lane);
        if (lane == 0) row.group_keys[g] = key;
    }
    __syncwarp();
    for (int first = 0; first < groups; first += kWarpSize) {
        const int g = first + lane;
        int rank = 0;  // how many groups precede g
        if (g < groups)
            for (int j = 0; j < groups; ++j)
                rank += row.group_keys[j] > row.group_keys[g] ||
                        (row.group_keys[j] == row.group_keys[g] && j < g);
        for (unsigned dropped = __ballot_sync(kAllLanes, g < groups && rank >= kept); dropped != 0;
             dropped &= dropped - 1) {
            int32_t* keys = row.keys + (first + __ffs(dropped) - 1) * size;
            for (int i = lane; i < size; i += kWarpSize) keys[i] = kLowestKey;
        }
    }
    __syncwarp();
}

// The best k of a row, ties to the lower index; their keys are struck out.
__device__ void choose_top(const TokenRow& row, int experts, int k, int lane) {
    for (int place = 0; place < k; ++place) {
        int32_t key = kPaddingKey;
        int at = INT32_MAX;
        for (int e = lane; e < experts; e += kWarpSize)
            if (row.keys[e] > key) key = row.keys[e], at = e;
        const int32_t best = __reduce_max_sync(kAllLanes, key);
        const int expert = __reduce_min_sync(kAllLanes, key == best ? at : INT32_MAX);
        if (lane == expert % kWarpSize) row.keys[expert] = kPaddingKey;
        if (lane == 0) row.chosen[place] = expert;
    }
    __syncwarp();
}

template <bool kShared>
__global__ void __launch_bounds__(kThreads, 8)
    route_kernel(Logits logits, const float* bias, const bool* valid, RouteOptions o, int64_t words,
                 float* weights, int32_t* indices, int32_t* load, int32_t* workspace) {
    extern __shared__ int32_t shared[];
    const int lane = threadIdx.x % kWarpSize, experts = static_cast<int>(logits.experts);
    const int top_k = static_cast<int>(o.top_k);
    const TokenRow row(kShared ? shared + threadIdx.x / kWarpSize * words : workspace + first_token() * words,
                       experts, o);
    for (int64_t t = first_token(); t < logits.tokens; t += token_step()) {
        const float* x = logits.row(t);
        for (int e = lane; e < experts; e += kWarpSize) row.keys[e] = key_of(sigmoid(x[e]) + bias[e]);
        __syncwarp();
        if (o.kept_groups < o.groups)
            drop_groups(row, experts, static_cast<int>(o.groups), static_cast<int>(o.kept_groups), lane);
        choose_top(row, experts, top_k, lane);
        for (int k = lane; k < top_k; k += kWarpSize) row.scores[k] = sigmoid(x[row.chosen[k]]);
        __syncwarp();
        float total = 0.0f;
        for (int k = 0; k < top_k; ++k) total += row.scores[k];
        total += kTinyScore;
        const bool counted = valid == nullptr || valid[t];
        float* const weight = weights + t * top_k;
        int32_t* const index = indices + t * top_k;
        for (int k = lane; k < top_k; k += kWarpSize) {
            const float score = row.scores[k];
            weight[k] = (o.normalize ? divide(score, total) : score) * o.scaling_factor;
            index[k] = row.chosen[k];
            if (counted) atomicAdd(load + row.chosen[k], 1);
        }
        __syncwarp();  // before the next token's keys
    }
}

__global__ void __launch_bounds__(kThreads)
    route_backward_kernel(const float* grad_weights, Logits logits, const int32_t* indices, RouteOptions o,
                          float* grad_logits) {
    const int lane = threadIdx.x % kWarpSize;
    const int64_t experts = logits.experts, top_k = o.top_k;
    for (int64_t t = first_token(); t < logits.tokens; t += token_step()) {
        const float* x = logits.row(t);
        float* to = grad_logits + t * experts;
        for (int64_t e = lane; e < experts; e += kWarpSize) to[e] = 0.0f;
        struct Choice {
            int32_t expert;
            float grad;
            Sigmoids<float> score;
        };
        // -1 and zeros for a choice that is not there.
        const auto choice = [&](int64_t k) -> Choice {
            if (k >= top_k) return {-1, 0.0f, {0.0f, 0.0f}};
            const int32_t expert = indices[t * top_k + k];
            if (expert < 0 || expert >= experts) return {-1, 0.0f, {0.0f, 0.0f}};
            return {expert, grad_weights[t * top_k + k], sigmoids(x[expert])};
        };
        float total = 0.0f, dot = 0.0f;
        for (int64_t first = 0; first < top_k; first += kWarpSize) {
            const Choice c = choice(first + lane);
            const float product = c.grad * c.score.of_x;
            for (int k = 0; k < kWarpSize && first + k < top_k; ++k) {
                total += __shfl_sync(kAllLanes, c.score.of_x, k);
                dot += __shfl_sync(kAllLanes, product, k);
            }
        }
        total += kTinyScore;
        const float mean = divide(dot, total);
        __syncwarp();  // the zeros come first
        for (int64_t k = lane; k < top_k; k += kWarpSize) {
            const Choice c = choice(k);
            const float grad = o.normalize ? divide(c.grad - mean, total) : c.grad;
            if (c.expert >= 0) to[c.expert] = grad * o.scaling_factor * c.score.of_x * c.score.of_minus_x;
        }
    }
}

template <class Count>
__global__ void __launch_bounds__(kThreads)
    update_bias_kernel(float* bias, const Count* load, int64_t routers, int64_t experts, float rate) {
    __shared__ int64_t of_warp[kMaxWarps];
    for (int64_t r = blockIdx.x; r < routers; r += gridDim.x) {
        const Count* counts = load + r * experts;
        int64_t total = 0;
        for (int64_t e = threadIdx.x; e < experts; e += kThreads) total += counts[e];
        total = sum_in_row(total, of_warp);
        for (int64_t e = threadIdx.x; e < experts; e += kThreads) {
            const int64_t share = static_cast<int64_t>(counts[e]) * experts;
            float* b = bias + r * experts + e;
            if (share < total) *b += rate;
            if (share > total) *b -= rate;
        }
    }
}

template <class Count>
void launch_update_bias(float* bias, const Count* load, int64_t routers, int64_t experts, float rate,
                        cudaStream_t stream) {
    if (routers == 0 || experts == 0) return;
    update_bias_kernel<<<grid_size(routers, kMaxGridX), kThreads, 0, stream>>>(bias, load, routers, experts,
                                                                               rate);
}

// How many warps share a block's memory: all, one, or none because a row does not fit.
int64_t warps_in_shared(int64_t words) {
    const int64_t bytes = words * static_cast<int64_t>(sizeof(int32_t));
    return kWarpsPerBlock * bytes <= kSharedBytes ? kWarpsPerBlock : bytes <= kSharedBytes ? 1 : 0;
}

}  // namespace

int64_t route_workspace(int64_t tokens, int64_t experts, const RouteOptions& options) {
    const int64_t words = TokenRow::words(experts, options);
    if (warps_in_shared(words) > 0) return 0;
    return words * (tokens < kWarpsWithWorkspace ? tokens : kWarpsWithWorkspace);
}

void route(const Logits& logits, const float* bias, const bool* valid, const RouteOptions& options,
           float* weights, int32_t* indices, int32_t* load, int32_t* workspace, cudaStream_t stream) {
    fill(load, logits.experts, 0, stream);
    if (logits.tokens == 0) return;
    const int64_t words = TokenRow::words(logits.experts, options), warps = warps_in_shared(words);
    if (warps > 0) {
        const auto bytes = static_cast<size_t>(warps * words) * sizeof(int32_t);
        const unsigned blocks = grid_size(ceil_div(logits.tokens, warps), kMaxGridX);
        route_kernel<true><<<blocks, static_cast<unsigned>(warps) * kWarpSize, bytes, stream>>>(
            logits, bias, valid, options, words, weights, indices, load, nullptr);
    } else {
        const unsigned blocks = grid_size(logits.tokens, kWarpsWithWorkspace);
        route_kernel<false><<<blocks, kWarpSize, 0, stream>>>(logits, bias, valid, options, words, weights,
                                                              indices, load, workspace);
    }
}

void route_backward(const float* grad_weights, const Logits& logits, const int32_t* indices,
                    const RouteOptions& options, float* grad_logits, cudaStream_t stream) {
    if (logits.tokens == 0) return;
    const unsigned blocks = grid_size(ceil_div(logits.tokens, kWarpsPerBlock), kMaxGridX);
    route_backward_kernel<<<blocks, kThreads, 0, stream>>>(grad_weights, logits, indices, options,
                                                           grad_logits);
}

void update_router_bias(float* bias, const int32_t* load, int64_t routers, int64_t experts, float rate,
                        cudaStream_t stream) {
    launch_update_bias(bias, load, routers, experts, rate, stream);
}

void update_router_bias(float* bias, const int64_t* load, int64_t routers, int64_t experts, float rate,
                        cudaStream_t stream) {
    launch_update_bias(bias, load, routers, experts, rate, stream);
}

}  // namespace dse::cuda
