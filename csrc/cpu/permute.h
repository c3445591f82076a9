// The permute family on the CPU: rows brought into expert order and back. Every tier gives the same bits
// (which NaN a NaN becomes excepted; copies keep every bit).
//
// T tokens, K choices a token, M rows in expert order. `rows` [M] holds the token * K + k of each row,
// `slots` [T, K] the row of each (token, k); -1 in either means "none". Their values must have been checked
// with first_outside(). Strides are in elements. Results are contiguous.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cpu/parallel.h"
#include "cpu/quantize.h"

namespace dse::cpu {

// The position of the first value outside [-1, end), or -1.
inline int64_t first_outside(const int32_t* values, int64_t count, int64_t end) {
    // Shifted by one, -1 is the smallest unsigned number and everything below it large.
    const uint32_t limit = static_cast<uint32_t>(std::min<int64_t>(end, int64_t{1} << 31));
    const auto outside = [limit](int32_t x) { return static_cast<uint32_t>(x) + 1u > limit; };
    constexpr int64_t kPiece = 1024;  // looked at as a whole, without a branch for each value
    for (int64_t begin = 0; begin < count; begin += kPiece) {
        const int64_t stop = std::min(begin + kPiece, count);
        uint32_t any = 0;
        for (int64_t i = begin; i < stop; ++i) any |= outside(values[i]);
        if (any) return std::find_if(values + begin, values + stop, outside) - values;
    }
    return -1;
}

// The stable counting sort of `count` = T * K choices by expert: rows [count], slots [count], and the ends of
// the experts' rows, offs [num_experts].
void expert_order(const int32_t* indices, int64_t count, int64_t num_experts, int32_t* rows, int32_t* slots,
                  int32_t* offs, const ParallelFor& parallel);

// result[places[i]] = i, and -1 where no i leads. Returns the first i whose place was taken already, or -1.
inline int64_t inverse_order(const int32_t* places, int64_t count, int64_t size, int32_t* result) {
    std::fill(result, result + size, -1);
    for (int64_t i = 0; i < count; ++i) {
        if (places[i] < 0) continue;
        if (result[places[i]] >= 0) return i;
        result[places[i]] = static_cast<int32_t>(i);
    }
    return -1;
}

// out [count, width]: the rows in order, zeros for row -1.
void gather_bytes(const ByteMatrix& x, const RowOrder& order, uint8_t* out, const ParallelFor& parallel);

// out [count, columns] likewise, ones for row -1; scales may lie in any way.
void gather_scales(const float* scales, int64_t columns, int64_t row_stride, int64_t column_stride,
                   const RowOrder& order, float* out, const ParallelFor& parallel);

// out [count, columns] in x's type: each row times weights[rows[i]], rounded to nearest even.
void gather_weighted(const FloatMatrix& x, const float* weights, const RowOrder& order, void* out,
                     const ParallelFor& parallel);

// out [T, columns] in x's type: the FP32 sum, from zero and in order of k, of a token's rows of x, each times
// its weight if `weights` [T, K] is not null; then its row of `residual`, of x's type, if that has data.
void combine_rows(const FloatMatrix& x, const Slots& slots, const float* weights, const FloatMatrix& residual,
                  void* out, const ParallelFor& parallel);

// out [T, K]: the inner product of a token's row of x with each of its rows of y, of x's type; 0 where there
// is none. Summed in FP32: error at most (columns / 64 + 7) * 2^-24 * sum |x y|, to first order.
void row_dots(const FloatMatrix& x, const FloatMatrix& y, const Slots& slots, float* out,
              const ParallelFor& parallel);

}  // namespace dse::cpu
