// The balance loss of a sequence and its gradient.
//
// A token's scores are summed by a warp, in the order of the CPU's: down 16 columns, then by halves. A block
// of threads then takes 64 experts of 128 tokens: computes their shares in parallel, and adds each expert's
// down the tokens in order, as it counts the choices. What is left is one number an expert for each 128
// tokens. Bound by the issue of instructions: a sigmoid takes about 60 of PTX, and is computed twice rather
// than stored.
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/routing.cuh"
#include "cuda/warp.cuh"
#include "formats/exp.h"
#include "formats/routing.h"

namespace dse::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarpsPerBlock = kThreads / kWarpSize;
constexpr int kBlockTokens = static_cast<int>(TokenBlocks::kTokens);
constexpr int kBlockExperts = 64;  // with 128 tokens 32 KB of shares

// A thread's part of a sum over experts, of which lane l takes each 32nd from the l-th on. The upper half of
// a warp hands its terms to the lower half, which keeps the 16 columns.
class ColumnSum {
    static_assert(kSumColumns == kWarpSize / 2);

  public:
    // All lanes must call it, with zero where there is no expert.
    __device__ void add(float term) {
        sum_ += term;
        sum_ += __shfl_down_sync(kAllLanes, term, kWarpSize / 2);  // means nothing in the upper half
    }
    // In every lane.
    __device__ float total() const {
        float sum = sum_;
        for (int half = kSumColumns / 2; half > 0; half /= 2) sum += __shfl_down_sync(kAllLanes, sum, half);
        return __shfl_sync(kAllLanes, sum, 0);
    }

  private:
    float sum_ = 0.0f;
};

__device__ float total_score(const float* logits, int64_t experts, int lane) {
    ColumnSum sum;
    for (int64_t first = 0; first < experts; first += kWarpSize)
        sum.add(first + lane < experts ? sigmoid(logits[first + lane]) : 0.0f);
    return sum.total();
}

// totals[t]: the sum of a valid token's scores.
__global__ void __launch_bounds__(kThreads) totals_kernel(BalanceBatch batch, float* totals) {
    const int lane = threadIdx.x % kWarpSize;
    const int64_t step = static_cast<int64_t>(gridDim.x) * kWarpsPerBlock;
    for (int64_t t = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarpSize;
         t < batch.logits.tokens; t += step) {
        if (!batch.is_valid(t)) continue;
        const float total = total_score(batch.logits.row(t), batch.logits.experts, lane);
        if (lane == 0) totals[t] = total;
    }
}

// counts[b, e]: how often the valid tokens of block b chose expert e. shares[b, e]: the sum of their s_te /
// total_t, in order.
template <bool kShares>
__global__ void __launch_bounds__(kThreads)
    tally_kernel(BalanceBatch batch, TokenBlocks blocks, unsigned chunks, const float* totals,
                 int32_t* counts, float* shares) {
    __shared__ int32_t count[kBlockExperts];
    __shared__ float share[kShares ? kBlockTokens : 1][kBlockExperts];
    const int64_t block = blockIdx.x / chunks, first_token = blocks.first(block);
    const int tokens = static_cast<int>(blocks.last(block) - first_token);
    const int64_t first_expert = static_cast<int64_t>(blockIdx.x % chunks) * kBlockExperts;
    const int64_t left = batch.logits.experts - first_expert;
    const int experts = left < kBlockExperts ? static_cast<int>(left) : kBlockExperts;
    if (threadIdx.x < kBlockExperts) count[threadIdx.x] = 0;
    __syncthreads();
    const int32_t* indices = batch.indices + first_token * batch.top_k;
    const int top_k = static_cast<int>(batch.top_k);
    for (int i = threadIdx.x; i < tokens * top_k; i += kThreads) {
        const int64_t e = indices[i] - first_expert;
        if (e >= 0 && e < experts && batch.is_valid(first_token + i / top_k)) atomicAdd(count + e, 1);
    }
    if (kShares) {
        for (int i = threadIdx.x; i < tokens * kBlockExperts; i += kThreads) {
            const int t = i / kBlockExperts, e = i % kBlockExperts;
            const bool present = e < experts && batch.is_valid(first_token + t);
            const float* logits = batch.logits.row(first_token + t) + first_expert;
            share[t][e] = present ? divide(sigmoid(logits[e]), totals[first_token + t]) : 0.0f;
        }
    }
    __syncthreads();
    if (threadIdx.x < experts) {
        const int64_t to = block * batch.logits.experts + first_expert + threadIdx.x;
        counts[to] = count[threadIdx.x];
        if (kShares) {
            float sum = 0.0f;
            for (int t = 0; t < tokens; ++t) sum += share[t][threadIdx.x];
            shares[to] = sum;
        }
    }
}

// A sequence's valid tokens, counted by a block of threads.
__device__ int64_t valid_tokens(const BalanceBatch& batch, int64_t sequence, int64_t* of_warp) {
    const int64_t length = batch.length();
    if (batch.valid == nullptr) return length;
    int64_t tokens = 0;
    for (int64_t t = threadIdx.x; t < length; t += kThreads) tokens += batch.valid[sequence * length + t];
    return sum_in_row(tokens, of_warp);
}

// x[block, expert] added over the blocks of a sequence, in order.
template <class Sum, class T>
__device__ Sum sum_of_blocks(const T* x, const TokenBlocks& blocks, int64_t sequence, int64_t expert,
                             int64_t experts) {
    Sum sum = 0;
#pragma unroll 8
    for (int64_t b = sequence * blocks.each; b < (sequence + 1) * blocks.each; ++b)
        sum += x[b * experts + expert];
    return sum;
}

// sums[s]: the sum over experts of f_e P_e.
__global__ void __launch_bounds__(kThreads)
    sequence_kernel(BalanceBatch batch, TokenBlocks blocks, const int32_t* counts, const float* shares,
                    double* sums) {
    __shared__ int64_t tokens_of_warp[kMaxWarps];
    __shared__ double sum_of_warp[kMaxWarps];
    const int64_t experts = batch.logits.experts;
    for (int64_t s = blockIdx.x; s < batch.sequences; s += gridDim.x) {
        const int64_t tokens = valid_tokens(batch, s, tokens_of_warp);
        double sum = 0.0;
        for (int64_t e = threadIdx.x; e < experts; e += kThreads) {
            const auto chosen = sum_of_blocks<int64_t>(counts, blocks, s, e, experts);
            const auto share = sum_of_blocks<double>(shares, blocks, s, e, experts);
            sum += choice_frequency(chosen, tokens, experts, batch.top_k) * share;
        }
        sum = sum_in_row(sum, sum_of_warp);
        if (threadIdx.x == 0) sums[s] = sum;
    }
}

__global__ void loss_kernel(const double* sums, int64_t sequences, double alpha, float* loss) {
    double sum = 0.0;
    for (int64_t s = 0; s < sequences; ++s) sum += sums[s];
    *loss = static_cast<float>(alpha / static_cast<double>(sequences) * sum);
}

// frequencies[s, e]: what f_e contributes to the gradient.
__global__ void __launch_bounds__(kThreads)
    frequency_kernel(BalanceBatch batch, TokenBlocks blocks, const int32_t* counts, double alpha,
                     const float* grad, float* frequencies) {
    __shared__ int64_t tokens_of_warp[kMaxWarps];
    const int64_t experts = batch.logits.experts;
    const double scale = alpha * *grad / static_cast<double>(batch.sequences);
    for (int64_t s = blockIdx.x; s < batch.sequences; s += gridDim.x) {
        const int64_t tokens = valid_tokens(batch, s, tokens_of_warp);
        for (int64_t e = threadIdx.x; e < experts; e += kThreads) {
            const auto chosen = sum_of_blocks<int64_t>(counts, blocks, s, e, experts);
            frequencies[s * experts + e] =
                static_cast<float>(scale * choice_frequency(chosen, tokens, experts, batch.top_k));
        }
    }
}

// s_e / total * (f_e - sum_j f_j s_j / total) * (1 - s_e).
__global__ void __launch_bounds__(kThreads)
    balance_backward_kernel(BalanceBatch batch, int64_t length, const float* frequencies,
                            float* grad_logits) {
    const int lane = threadIdx.x % kWarpSize;
    const int64_t experts = batch.logits.experts;
    const int64_t step = static_cast<int64_t>(gridDim.x) * kWarpsPerBlock;
    for (int64_t t = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarpSize;
         t < batch.logits.tokens; t += step) {
        float* to = grad_logits + t * experts;
        if (!batch.is_valid(t)) {
            for (int64_t e = lane; e < experts; e += kWarpSize) to[e] = 0.0f;
            continue;
        }
        const float* logits = batch.logits.row(t);
        const float* f = frequencies + t / length * experts;
        ColumnSum scores, products;
        for (int64_t first = 0; first < experts; first += kWarpSize) {
            const int64_t e = first + lane;
            const float score = e < experts ? sigmoid(logits[e]) : 0.0f;
            scores.add(score);
            products.add(e < experts ? f[e] * score : 0.0f);
        }
        const float total = scores.total();
        const float mean = divide(products.total(), total);
        for (int64_t e = lane; e < experts; e += kWarpSize) {
            const Sigmoids<float> s = sigmoids(logits[e]);
            to[e] = divide(s.of_x, total) * (f[e] - mean) * s.of_minus_x;
        }
    }
}

// Where things lie in the caller's memory: the doubles first, which need the alignment.
struct Workspace {
    Workspace(const BalanceBatch& batch, double* memory)
        : blocks(TokenBlocks::of(batch.sequences, batch.length())), sums(memory) {
        const int64_t cells = blocks.count * batch.logits.experts;
        totals = reinterpret_cast<float*>(sums + batch.sequences);
        shares = totals + batch.logits.tokens;
        counts = reinterpret_cast<int32_t*>(shares + cells);
        frequencies = shares;
    }
    static int64_t doubles(const BalanceBatch& batch) {
        const TokenBlocks blocks = TokenBlocks::of(batch.sequences, batch.length());
        return batch.sequences + ceil_div(batch.logits.tokens + 2 * blocks.count * batch.logits.experts, 2);
    }

    TokenBlocks blocks;
    double* sums;        // [sequences]
    float* totals;       // [T]
    float* shares;       // [blocks, E]
    int32_t* counts;     // [blocks, E]
    float* frequencies;  // [sequences, E], no more than blocks; the gradient needs these, the loss shares
};

template <bool kShares>
void launch_tally(const BalanceBatch& batch, const Workspace& w, cudaStream_t stream) {
    if (w.blocks.count == 0) return;
    const auto chunks = static_cast<unsigned>(ceil_div(batch.logits.experts, kBlockExperts));
    tally_kernel<kShares><<<static_cast<unsigned>(w.blocks.count) * chunks, kThreads, 0, stream>>>(
        batch, w.blocks, chunks, w.totals, w.counts, w.shares);
}

unsigned blocks_of_tokens(const BalanceBatch& batch) {
    return grid_size(ceil_div(batch.logits.tokens, kWarpsPerBlock), kMaxGridX);
}

}  // namespace

int64_t balance_workspace(const BalanceBatch& batch) { return Workspace::doubles(batch); }

void sequence_balance_loss(const BalanceBatch& batch, double alpha, float* loss, double* workspace,
                           cudaStream_t stream) {
    const Workspace w(batch, workspace);
    if (batch.logits.tokens > 0)
        totals_kernel<<<blocks_of_tokens(batch), kThreads, 0, stream>>>(batch, w.totals);
    launch_tally<true>(batch, w, stream);
    sequence_kernel<<<grid_size(batch.sequences, kMaxGridX), kThreads, 0, stream>>>(batch, w.blocks, w.counts,
                                                                                    w.shares, w.sums);
    loss_kernel<<<1, 1, 0, stream>>>(w.sums, batch.sequences, alpha, loss);
}

void sequence_balance_loss_backward(const BalanceBatch& batch, double alpha, const float* grad,
                                    float* grad_logits, double* workspace, cudaStream_t stream) {
    if (batch.logits.tokens == 0) return;
    const Workspace w(batch, workspace);
    launch_tally<false>(batch, w, stream);
    frequency_kernel<<<grid_size(batch.sequences, kMaxGridX), kThreads, 0, stream>>>(
        batch, w.blocks, w.counts, alpha, grad, w.frequencies);
    balance_backward_kernel<<<blocks_of_tokens(batch), kThreads, 0, stream>>>(batch, batch.length(),
                                                                              w.frequencies, grad_logits);
}

}  // namespace dse::cuda
