// The router's arithmetic on every device: choices as integers, how often an expert is chosen, how a batch is
// cut up to be summed.
#pragma once
#include "formats/tiles.h"

namespace dse {

// Keeps weights finite where all chosen scores are zero.
inline constexpr float kTinyScore = 1e-20f;

// Choices are compared as integers, their keys: the bits of a float, those of a negative one turned over,
// have the order of the numbers, and no NaN can upset them.
inline constexpr int32_t kLowestKey = static_cast<int32_t>(0x807fffffu);  // that of -inf
inline constexpr int32_t kPaddingKey = INT32_MIN;                         // precedes nothing

DSE_FN int32_t key_of(float choice) {
    const auto bits = static_cast<int32_t>(float_bits(choice));
    const int32_t magnitude = bits & INT32_MAX;
    const int32_t key = bits ^ ((bits >> 31) & INT32_MAX);
    return magnitude > static_cast<int32_t>(kFloatInfBits) ? kLowestKey : key;  // NaN ranks as -inf
}

DSE_FN float choice_of(int32_t key) {
    return bits_float(static_cast<uint32_t>(key ^ ((key >> 31) & INT32_MAX)));
}

// Sums over the experts of a token go down this many columns, then across them by halves.
inline constexpr int64_t kSumColumns = 16;

// A batch cut into blocks of tokens of one sequence, whose partial sums are added in order: the result does
// not depend on the threads that computed them.
struct TokenBlocks {
    static constexpr int64_t kTokens = 128;

    DSE_FN static TokenBlocks of(int64_t sequences, int64_t length) {
        const int64_t each = ceil_div(length, kTokens);
        return {length, each, sequences * each};
    }
    DSE_FN int64_t first(int64_t block) const { return block / each * length + block % each * kTokens; }
    DSE_FN int64_t last(int64_t block) const {
        const int64_t end = (block / each + 1) * length, full = first(block) + kTokens;
        return full < end ? full : end;
    }

    int64_t length;  // of a sequence
    int64_t each;    // blocks of a sequence
    int64_t count;
};

// f_e / T of a sequence with T = `tokens` valid tokens, which chose the expert `chosen` times: E / (K T^2)
// times that, and 0 in a sequence of padding.
DSE_FN double choice_frequency(int64_t chosen, int64_t tokens, int64_t experts, int64_t top_k) {
    const double length = static_cast<double>(tokens > 0 ? tokens : 1);
    return static_cast<double>(chosen * experts) / (static_cast<double>(top_k) * length * length);
}

}  // namespace dse
