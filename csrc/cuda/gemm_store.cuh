// How a thread of the gemm kernels writes its part of a row of the result: tensor cores leave each thread
// pairs of neighbouring columns, eight columns apart.
#pragma once
#include "cuda/gemm_work.cuh"
#include "formats/bf16.h"

namespace dse::cuda {

// Of the row that begins at `row`, columns first + 8 * j and the next become value(j), for j in [0, kPairs),
// as far as they lie below `columns`. Four lanes' pairs of FP32 fill a sector.
template <int kPairs, class Value>
__device__ inline void store_row(const GemmArguments& p, char* row, int first, int columns,
                                 const Value& value) {
    const auto has = [&](int j, int i) { return first + 8 * j + i < columns; };
    if (p.all.out.store == GemmStore::kBf16) {
        uint16_t* out = reinterpret_cast<uint16_t*>(row) + first;
#pragma unroll
        for (int j = 0; j < kPairs; ++j) {
            const float2 x = value(j);
            const uint16_t low = float_to_bf16(x.x), high = float_to_bf16(x.y);
            if (has(j, 1) && p.out_pairs) {
                *reinterpret_cast<ushort2*>(out + 8 * j) = {low, high};
            } else {
                if (has(j, 0)) out[8 * j] = low;
                if (has(j, 1)) out[8 * j + 1] = high;
            }
        }
        return;
    }
    float* out = reinterpret_cast<float*>(row) + first;
    // All loads before the first store, which the compiler must take for a change of what they read.
    float2 before[kPairs];
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
        before[j] = {0, 0};
        if (p.all.out.store != GemmStore::kAccumulate) continue;
        if (has(j, 1) && p.out_pairs) {
            before[j] = *reinterpret_cast<const float2*>(out + 8 * j);
        } else {
            if (has(j, 0)) before[j].x = out[8 * j];
            if (has(j, 1)) before[j].y = out[8 * j + 1];
        }
    }
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
        float2 x = value(j);
        if (p.all.out.store == GemmStore::kAccumulate) x = {before[j].x + x.x, before[j].y + x.y};
        if (has(j, 1) && p.out_pairs) {
            *reinterpret_cast<float2*>(out + 8 * j) = x;
        } else {
            if (has(j, 0)) out[8 * j] = x.x;
            if (has(j, 1)) out[8 * j + 1] = x.y;
        }
    }
}

}  // namespace dse::cuda
