#include "cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
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

// Queries and keys that are worked on together: their scores stay in L1.
constexpr int64_t kBlock = 64;
// On the diagonal, rows are multiplied in strips of so many, each with the columns that it sees.
constexpr int64_t kStrip = 16;

constexpr int64_t round_up(int64_t x, int64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

// The buffers of one thread, cut from one piece of memory, each on a line of its own.
class Arena {
  public:
    explicit Arena(int64_t words) : memory_(words + kLine), next_(memory_.data()) {
        next_ += kLine - reinterpret_cast<uintptr_t>(next_) / sizeof(float) % kLine;
    }
    template <class Word>
    Word* take(int64_t words) {
        static_assert(sizeof(Word) == sizeof(float));
        float* const taken = next_;
        next_ += round_up(words, kLine);
        return reinterpret_cast<Word*>(taken);
    }

  private:
    static constexpr int64_t kLine = 16;
    std::vector<float> memory_;
    float* next_;
};

// The first and one past the last block of keys that a block of queries sees, and the largest start in it.
struct KeyRange {
    int64_t first, last, latest_start;
};

KeyRange keys_of(const AttentionShape& shape, int64_t sequence, int64_t query, int64_t count) {
    const int64_t last = query / kBlock + 1;
    if (shape.starts == nullptr) return {0, last, 0};
    const int32_t* starts = shape.starts + sequence * shape.tokens + query;
    const auto [least, most] = std::minmax_element(starts, starts + count);
    return {*least / kBlock, last, *most};
}

}  // namespace
}  // namespace dse::cpu

#define DSE_BODY "cpu/attention.inc"
#include "cpu/foreach_isa.h"

namespace dse::cpu {

void attention(const AttentionShape& shape, const HeadRows& q, const HeadRows& k, const HeadRows& v,
               const HeadRows& out, float* logsumexp, const ParallelFor& parallel) {
    DSE_SELECT(attention)(shape, q, k, v, out, logsumexp, parallel);
}

void attention_backward(const AttentionShape& shape, const HeadRows& grad, const HeadRows& q,
                        const HeadRows& k, const HeadRows& v, const HeadRows& out, const float* logsumexp,
                        const AttentionGradients& gradients, const ParallelFor& parallel) {
    DSE_SELECT(attention_backward)(shape, grad, q, k, v, out, logsumexp, gradients, parallel);
}

}  // namespace dse::cpu
