#include "cpu/routing.h"

#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "cpu/intrinsics.h"
#include "formats/bf16.h"
#include "formats/e4m3.h"
#include "formats/exp.h"
#include "formats/f16.h"
#include "formats/routing.h"
#include "formats/scale.h"
#include "formats/tiles.h"

namespace dse::cpu {
namespace {

// Rows are padded to a multiple of this; a multiple of every tier's vector.
constexpr int64_t kColumns = kSumColumns;
constexpr int64_t padded(int64_t n) { return (n + kColumns - 1) / kColumns * kColumns; }

// Tokens that are worth a thread: so many take 11 us to route to 32 experts, and a thread a few to wake.
constexpr int64_t kMinTokens = 128;

// `size` floats or int32, aligned for any vector; allocated once for a range of tokens.
class Scratch {
  public:
    explicit Scratch(int64_t size) : data_(::operator new(static_cast<size_t>(size) * 4, kAlignment)) {}
    ~Scratch() { ::operator delete(data_, kAlignment); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    float* floats() const { return static_cast<float*>(data_); }
    int32_t* ints() const { return static_cast<int32_t*>(data_); }

  private:
    static constexpr std::align_val_t kAlignment{64};
    void* data_;
};

TokenBlocks blocks_of(const BalanceBatch& batch) { return TokenBlocks::of(batch.sequences, batch.length()); }

// How many valid tokens a sequence has, and how often they chose each expert.
struct Tally {
    Tally(const BalanceBatch& batch, const ParallelFor& parallel)
        : experts(batch.logits.experts), tokens(batch.sequences), chosen(batch.sequences * experts) {
        const TokenBlocks blocks = blocks_of(batch);
        std::vector<int32_t> counts(blocks.count * (experts + 1));
        parallel(blocks.count, 16, [&](int64_t begin, int64_t end) {
            for (int64_t b = begin; b < end; ++b) {
                int32_t* count = &counts[b * (experts + 1)];
                for (int64_t t = blocks.first(b); t < blocks.last(b); ++t) {
                    if (!batch.is_valid(t)) continue;
                    ++count[experts];
                    for (int64_t k = 0; k < batch.top_k; ++k) ++count[batch.indices[t * batch.top_k + k]];
                }
            }
        });
        for (int64_t b = 0; b < blocks.count; ++b) {
            const int64_t sequence = b / blocks.each;
            const int32_t* count = &counts[b * (experts + 1)];
            for (int64_t e = 0; e < experts; ++e) chosen[sequence * experts + e] += count[e];
            tokens[sequence] += count[experts];
        }
    }
    double frequency(int64_t sequence, int64_t expert, int64_t top_k) const {
        return choice_frequency(chosen[sequence * experts + expert], tokens[sequence], experts, top_k);
    }
    int64_t experts;
    std::vector<int64_t> tokens;
    std::vector<int32_t> chosen;  // [sequences, E]
};

}  // namespace
}  // namespace dse::cpu

#define DSE_BODY_WITHOUT_BF16
#define DSE_BODY "cpu/routing.inc"
#include "cpu/foreach_isa.h"

namespace dse::cpu {

void route(const Logits& logits, const float* bias, const bool* valid, const RouteOptions& options,
           float* weights, int32_t* indices, int32_t* load, const ParallelFor& parallel) {
    DSE_SELECT(route_tokens)(logits, bias, options, weights, indices, parallel);
    const Tally tally({logits, indices, options.top_k, valid, 1}, parallel);
    for (int64_t e = 0; e < logits.experts; ++e) load[e] = tally.chosen[e];
}

void route_backward(const float* grad_weights, const Logits& logits, const int32_t* indices,
                    const RouteOptions& options, float* grad_logits, const ParallelFor& parallel) {
    DSE_SELECT(route_backward)(grad_weights, logits, indices, options, grad_logits, parallel);
}

float sequence_balance_loss(const BalanceBatch& batch, double alpha, const ParallelFor& parallel) {
    const IeeeScope ieee;
    const TokenBlocks blocks = blocks_of(batch);
    const int64_t experts = batch.logits.experts;
    const Tally tally(batch, parallel);
    std::vector<float> shares(blocks.count * experts);
    DSE_SELECT(add_shares)(batch, shares.data(), parallel);
    double sum = 0.0;
    for (int64_t s = 0; s < batch.sequences; ++s) {
        for (int64_t e = 0; e < experts; ++e) {
            double share = 0.0;
            for (int64_t b = s * blocks.each; b < (s + 1) * blocks.each; ++b)
                share += shares[b * experts + e];
            sum += tally.frequency(s, e, batch.top_k) * share;
        }
    }
    return static_cast<float>(alpha / static_cast<double>(batch.sequences) * sum);
}

void sequence_balance_loss_backward(const BalanceBatch& batch, double scale, float* grad_logits,
                                    const ParallelFor& parallel) {
    const IeeeScope ieee;
    const int64_t experts = batch.logits.experts, width = padded(experts);
    const Tally tally(batch, parallel);
    std::vector<float> frequencies(batch.sequences * width);
    for (int64_t s = 0; s < batch.sequences; ++s)
        for (int64_t e = 0; e < experts; ++e)
            frequencies[s * width + e] = static_cast<float>(scale / static_cast<double>(batch.sequences) *
                                                            tally.frequency(s, e, batch.top_k));
    DSE_SELECT(balance_backward)(batch, frequencies.data(), grad_logits, parallel);
}

}  // namespace dse::cpu
