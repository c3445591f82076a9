// Bound by memory: a row stays in registers between its sum and its result, so that x is read once (rows of
// more than 8192 elements partly twice).
#include "cuda/norm.cuh"
#include "cuda/reduce.cuh"
#include "cuda/rows.cuh"

namespace dse::cuda {
namespace {

constexpr int kHeld = 4;
// The backward holds three rows instead of one: in more threads, since a thread has 255 registers at most.
constexpr int kBackwardThreads = 512;
constexpr int kBackwardHeld = 2;
constexpr int kMostBlocks = 512;  // of the backward, where rows allow: some three or four for each SM
constexpr int kLeastRows = 4;     // of a run
constexpr int kSumColumns = 32;   // of a block that adds up runs

// weight times the normalised vector, at column c.
template <bool kVector, class T>
__device__ void store_scaled(const float* x, float rstd, const float* weight, int64_t c, int64_t columns,
                             T* out) {
    float factors[kVectorLength], result[kVectorLength];
    load_part<kVector>(weight + c, columns - c, factors);
#pragma unroll
    for (int i = 0; i < kVectorLength; ++i) result[i] = x[i] * rstd * factors[i];
    store_part<kVector>(result, columns - c, out + c);
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kRowThreads)
    rms_norm_kernel(FloatMatrix x, const float* __restrict__ weight, float eps, T* __restrict__ out,
                    float* __restrict__ rstd) {
    __shared__ float shared[kMaxWarps];
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y;
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y; first < x.rows; first += step) {
        const int64_t row = first + threadIdx.y;
        const bool present = row < x.rows;
        RowShare<T, kVector, kHeld> share(static_cast<const T*>(x.data) + row * x.row_stride,
                                          present ? x.columns : 0);
        RowSum squares;
        share.each([&](int64_t, int, const float* values) {
#pragma unroll
            for (int i = 0; i < kVectorLength; ++i) squares.add_product(i, values[i], values[i]);
        });
        const float mean = divide(squares.total(shared), static_cast<float>(x.columns));
        const float factor = divide(1.0f, __fsqrt_rn(mean + eps));
        if (present && threadIdx.x == 0) rstd[row] = factor;
        share.each([&](int64_t c, int, const float* values) {
            store_scaled<kVector>(values, factor, weight, c, x.columns, out + row * x.columns);
        });
    }
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kRowThreads)
    rms_norm_again_kernel(FloatMatrix x, const float* __restrict__ weight, const float* __restrict__ rstd,
                          T* __restrict__ out) {
    each_row(x.rows, [&](int64_t row) {
        const T* const from = static_cast<const T*>(x.data) + row * x.row_stride;
        const float factor = rstd[row];
        each_column(x.columns, [&](int64_t c) {
            float values[kVectorLength];
            load_part<kVector>(from + c, x.columns - c, values);
            store_scaled<kVector>(values, factor, weight, c, x.columns, out + row * x.columns);
        });
    });
}

struct Backward {
    FloatMatrix grad, x;
    const float* weight;
    const float* rstd;
    void* grad_x;
    float* sums;  // [runs, columns]
    int64_t runs, rows_per_run;
};

// One run of rows for each group of threads: what it adds up stays in registers too.
template <class T, bool kVector>
__global__ void __launch_bounds__(kBackwardThreads) rms_norm_backward_kernel(Backward given) {
    __shared__ float shared[kMaxWarps];
    const FloatMatrix& x = given.x;
    const int64_t run = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
    float* const run_sums = given.sums + run * x.columns;
    float sums[kBackwardHeld * kVectorLength] = {};
    for (int64_t i = 0; i < given.rows_per_run; ++i) {
        const int64_t row = run * given.rows_per_run + i;
        const bool present = row < x.rows;
        const int64_t columns = present ? x.columns : 0;
        RowShare<T, kVector, kBackwardHeld> share(static_cast<const T*>(x.data) + row * x.row_stride,
                                                  columns);
        RowShare<T, kVector, kBackwardHeld> grads(
            static_cast<const T*>(given.grad.data) + row * given.grad.row_stride, columns);
        const float factor = present ? given.rstd[row] : 0.0f;
        RowSum products;
        share.each(grads, [&](int64_t c, int held, float* values, const float* grad) {
            float weights[kVectorLength];
            load_part<kVector>(given.weight + c, columns - c, weights);
#pragma unroll
            for (int j = 0; j < kVectorLength; ++j) {
                const float product = grad[j] * (values[j] * factor);
                products.add_product(j, product, weights[j]);
                if (held < kBackwardHeld)
                    sums[held * kVectorLength + j] += product;
                else if (j < columns - c)
                    run_sums[c + j] = (i == 0 ? 0.0f : run_sums[c + j]) + product;
            }
        });
        const float along = divide(products.total(shared), static_cast<float>(x.columns));
        share.each(grads, [&](int64_t c, int, const float* values, const float* grad) {
            float weights[kVectorLength], result[kVectorLength];
            load_part<kVector>(given.weight + c, columns - c, weights);
#pragma unroll
            for (int j = 0; j < kVectorLength; ++j)
                result[j] = (grad[j] * weights[j] - values[j] * factor * along) * factor;
            store_part<kVector>(result, columns - c, static_cast<T*>(given.grad_x) + row * x.columns + c);
        });
    }
    if (run >= given.runs) return;
#pragma unroll
    for (int i = 0; i < kBackwardHeld; ++i) {
        const int64_t c = RowShare<T, kVector, kBackwardHeld>::column(i);
        if (c < x.columns) store_part<kVector>(sums + i * kVectorLength, x.columns - c, run_sums + c);
    }
}

// Thread (x, y) adds up runs y, y + 32, ... of a column; then the threads of a column are added by halves.
__global__ void __launch_bounds__(kSumColumns * 32)
    add_runs_kernel(const float* __restrict__ sums, int64_t runs, int64_t columns, float* __restrict__ out) {
    __shared__ float shared[32][kSumColumns];
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * kSumColumns; first < columns;
         first += static_cast<int64_t>(gridDim.x) * kSumColumns) {
        const int64_t c = first + threadIdx.x;
        float sum = 0.0f;
        if (c < columns)
            for (int64_t run = threadIdx.y; run < runs; run += 32) sum += sums[run * columns + c];
        shared[threadIdx.y][threadIdx.x] = sum;
        for (int half = 16; half > 0; half /= 2) {
            __syncthreads();
            if (threadIdx.y < half)
                shared[threadIdx.y][threadIdx.x] += shared[threadIdx.y + half][threadIdx.x];
        }
        if (threadIdx.y == 0 && c < columns) out[c] = shared[0][threadIdx.x];
        __syncthreads();
    }
}

RowPlan plan_backward(int64_t rows, int64_t columns) { return plan_rows(rows, columns, kBackwardThreads); }

int64_t rows_per_run(int64_t rows, const RowPlan& plan) {
    const int64_t spread = ceil_div(rows, static_cast<int64_t>(kMostBlocks) * plan.block.y);
    return spread < kLeastRows ? kLeastRows : spread;
}

template <class T>
bool is_vector(const FloatMatrix& x, const float* weight, const void* out) {
    return vector_rows(x.data, x.columns, x.row_stride, sizeof(T)) && is_aligned(weight, 16) &&
           is_aligned(out, 16);
}

}  // namespace

void rms_norm(const FloatMatrix& x, const float* weight, float eps, void* out, float* rstd,
              cudaStream_t stream) {
    if (x.rows == 0) return;
    const RowPlan plan = plan_rows(x.rows, x.columns, kRowThreads);
    with_type(x.type, [&](auto zero) {
        using T = decltype(zero);
        const auto kernel =
            is_vector<T>(x, weight, out) ? rms_norm_kernel<T, true> : rms_norm_kernel<T, false>;
        kernel<<<plan.grid, plan.block, 0, stream>>>(x, weight, eps, static_cast<T*>(out), rstd);
    });
}

void rms_norm_again(const FloatMatrix& x, const float* weight, const float* rstd, void* out,
                    cudaStream_t stream) {
    if (x.rows == 0) return;
    const RowPlan plan = plan_elements(x.rows, x.columns);
    with_type(x.type, [&](auto zero) {
        using T = decltype(zero);
        const auto kernel =
            is_vector<T>(x, weight, out) ? rms_norm_again_kernel<T, true> : rms_norm_again_kernel<T, false>;
        kernel<<<plan.grid, plan.block, 0, stream>>>(x, weight, rstd, static_cast<T*>(out));
    });
}

int64_t rms_norm_runs(int64_t rows, int64_t columns) {
    return ceil_div(rows, rows_per_run(rows, plan_backward(rows, columns)));
}

void rms_norm_backward(const FloatMatrix& grad, const FloatMatrix& x, const float* weight, const float* rstd,
                       void* grad_x, float* grad_weight, float* sums, cudaStream_t stream) {
    const RowPlan plan = plan_backward(x.rows, x.columns);
    const int64_t runs = rms_norm_runs(x.rows, x.columns);
    const Backward given{grad, x, weight, rstd, grad_x, sums, runs, rows_per_run(x.rows, plan)};
    if (runs > 0) {
        with_type(x.type, [&](auto zero) {
            using T = decltype(zero);
            const bool vector = is_vector<T>(x, weight, grad_x) && is_aligned(sums, 16) &&
                                vector_rows(grad.data, grad.columns, grad.row_stride, sizeof(T));
            const auto kernel =
                vector ? rms_norm_backward_kernel<T, true> : rms_norm_backward_kernel<T, false>;
            const dim3 grid(static_cast<unsigned>(ceil_div(runs, plan.block.y)));
            kernel<<<grid, plan.block, 0, stream>>>(given);
        });
    }
    // Without rows the gradient is zero.
    const dim3 grid(grid_size(ceil_div(x.columns, kSumColumns), kMaxGridX)), block(kSumColumns, 32);
    add_runs_kernel<<<grid, block, 0, stream>>>(sums, runs, x.columns, grad_weight);
}

}  // namespace dse::cuda
