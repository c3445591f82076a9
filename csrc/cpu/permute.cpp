#include "cpu/permute.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "cpu/cache.h"
#include "cpu/intrinsics.h"
#include "formats/bf16.h"
#include "formats/e4m3.h"
#include "formats/e5m6.h"
#include "formats/f16.h"
#include "formats/scale.h"
#include "formats/tiles.h"

// BF16 instructions flush subnormals and would give other bits.
#define DSE_BODY_WITHOUT_BF16
#define DSE_BODY "cpu/permute.inc"
#include "cpu/foreach_isa.h"

namespace dse::cpu {

void expert_order(const int32_t* indices, int64_t count, int64_t num_experts, int32_t* rows, int32_t* slots,
                  int32_t* offs, const ParallelFor& parallel) {
    // Each part of the choices counts its own; where a part's rows of an expert start then follows from the
    // counts of all, and the order is the same for any number of parts.
    const int64_t parts = std::clamp<int64_t>(count / kThreadElements, 1, parallel.threads());
    std::vector<int32_t> table(parts * num_experts);
    const auto in_part = [&](int64_t part, const auto& visit) {
        int32_t* of_expert = table.data() + part * num_experts;
        const int64_t end = count * (part + 1) / parts;
        for (int64_t i = count * part / parts; i < end; ++i) visit(i, of_expert);
    };
    const auto in_parts = [&](const auto& visit) {
        parallel(parts, 1, [&](int64_t begin, int64_t end) {
            for (int64_t part = begin; part < end; ++part) in_part(part, visit);
        });
    };
    in_parts([&](int64_t i, int32_t* counted) {
        if (indices[i] >= 0) ++counted[indices[i]];
    });
    int32_t start = 0;
    for (int64_t e = 0; e < num_experts; ++e) {
        for (int64_t part = 0; part < parts; ++part) {
            const int32_t counted = table[part * num_experts + e];
            table[part * num_experts + e] = start;
            start += counted;
        }
        offs[e] = start;
    }
    in_parts([&](int64_t i, int32_t* next) {
        const int32_t slot = indices[i] < 0 ? -1 : next[indices[i]]++;
        slots[i] = slot;
        if (slot >= 0) rows[slot] = static_cast<int32_t>(i);
    });
    std::fill(rows + start, rows + count, -1);
}

void gather_bytes(const ByteMatrix& x, const RowOrder& order, uint8_t* out, const ParallelFor& parallel) {
    DSE_SELECT(gather_bytes)(x, order, out, parallel);
}

void gather_scales(const float* scales, int64_t columns, int64_t row_stride, int64_t column_stride,
                   const RowOrder& order, float* out, const ParallelFor& parallel) {
    DSE_SELECT(gather_scales)(scales, columns, row_stride, column_stride, order, out, parallel);
}

void gather_weighted(const FloatMatrix& x, const float* weights, const RowOrder& order, void* out,
                     const ParallelFor& parallel) {
    DSE_SELECT(gather_weighted)(x, weights, order, out, parallel);
}

void combine_rows(const FloatMatrix& x, const Slots& slots, const float* weights, const FloatMatrix& residual,
                  void* out, const ParallelFor& parallel) {
    DSE_SELECT(combine_rows)(x, slots, weights, residual, out, parallel);
}

void row_dots(const FloatMatrix& x, const FloatMatrix& y, const Slots& slots, float* out,
              const ParallelFor& parallel) {
    DSE_SELECT(row_dots)(x, y, slots, out, parallel);
}

}  // namespace dse::cpu
