// A block has one row, three times: its largest, its exponentials' sum, its gradient. The first 16384
// elements stay in registers (8192 where rows are not aligned), as exponentials once they are made. The
// others are read again, and of a vocabulary of 129280 in BF16 that is 230 KB an SM, which all SMs of an A100
// or H100 together find in the second-level cache. What bounds it there is the two exponentials an element.
#include "cuda/cross_entropy.cuh"
#include "cuda/reduce.cuh"
#include "cuda/rows.cuh"

namespace dse::cuda {
namespace {

constexpr int kThreads = 1024;
// Single elements have addresses of their own, which leave room for fewer values in 64 registers.
template <bool kVector>
constexpr int kHeld = kVector ? 2 : 1;

// The largest number that a thread has met, and where it was first.
struct Largest {
    float value;
    int64_t column;
};

template <class T, bool kVector>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_kernel(FloatMatrix logits, const int64_t* __restrict__ targets, float* __restrict__ losses,
                         int64_t* __restrict__ choices) {
    __shared__ float shared[kMaxWarps];
    __shared__ int64_t shared_columns[kMaxWarps];
    const float infinity = bits_float(kFloatInfBits);
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y;
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y; first < logits.rows; first += step) {
        const int64_t row = first + threadIdx.y;
        const bool present = row < logits.rows;
        T* const data = static_cast<T*>(const_cast<void*>(logits.data)) + row * logits.row_stride;
        const int64_t columns = logits.columns, given = present ? targets[row] : kIgnoredTarget;
        const bool ignored = given == kIgnoredTarget;
        const int64_t target = given < 0 ? 0 : given < columns ? given : columns - 1;
        RowShare<T, kVector, kHeld<kVector>> share(data, present ? columns : 0);

        Largest mine{-infinity, INT64_MAX};
        float logit = 0.0f;  // the target's, in the thread that has it
        bool has_target = false;
        share.each([&](int64_t c, int, const float* values) {
#pragma unroll
            for (int i = 0; i < kVectorLength; ++i)
                if (values[i] > mine.value && (kVector || i < columns - c)) mine = {values[i], c + i};
            if (c <= target && target < c + kVectorLength) {
                has_target = true;
                logit = to_float(data[target]);
            }
        });
        const float largest = largest_in_row(mine.value, shared);
        const int64_t choice = reduce_row(mine.value == largest ? mine.column : INT64_MAX, shared_columns,
                                          [](int64_t a, int64_t b) { return a < b ? a : b; });
        if (present && threadIdx.x == 0) choices[row] = choice == INT64_MAX ? 0 : choice;

        RowSum exponentials;
        share.each([&](int64_t c, int, float* values) {
#pragma unroll
            for (int i = 0; i < kVectorLength; ++i) {
                values[i] = kVector || i < columns - c ? exp(values[i] - largest) : 0.0f;
                exponentials.add(i, values[i]);
            }
        });
        const float sum = exponentials.total(shared), portion = divide(1.0f, sum);
        share.each([&](int64_t c, int held, float* values) {
            const int at = c <= target && target < c + kVectorLength ? static_cast<int>(target - c) : -1;
            float result[kVectorLength];
#pragma unroll
            for (int i = 0; i < kVectorLength; ++i) {
                const float e = held < kHeld<kVector> ? values[i] : exp(values[i] - largest);
                result[i] = ignored ? 0.0f : e * portion - (i == at ? 1.0f : 0.0f);
            }
            store_part<kVector>(result, columns - c, data + c);
        });
        const float loss = ignored ? 0.0f : logf(sum) + (largest - logit);
        if (present && has_target) losses[row] = loss;
    }
}

}  // namespace

void cross_entropy(const FloatMatrix& logits, const int64_t* targets, float* losses, int64_t* choices,
                   cudaStream_t stream) {
    if (logits.rows == 0) return;
    const RowPlan plan = plan_rows(logits.rows, logits.columns, kThreads);
    with_type(logits.type, [&](auto zero) {
        using T = decltype(zero);
        const bool vector = vector_rows(logits.data, logits.columns, logits.row_stride, sizeof(T));
        const auto kernel = vector ? cross_entropy_kernel<T, true> : cross_entropy_kernel<T, false>;
        kernel<<<plan.grid, plan.block, 0, stream>>>(logits, targets, losses, choices);
    });
}

}  // namespace dse::cuda
