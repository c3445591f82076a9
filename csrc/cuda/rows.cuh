// How rows are dealt out to threads. blockDim.x threads, a power of two, share a row and take its vectors in
// turn; a block has blockDim.y rows, and walks all rows in steps of the grid.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/launch.cuh"
#include "cuda/vector.cuh"
#include "formats/tiles.h"

namespace dse::cuda {

struct RowPlan {
    dim3 grid, block;
};

inline constexpr int kRowThreads = 256;  // of a block, unless a row gets more

// One row to a group of up to `most` threads, enough for its vectors.
inline RowPlan plan_rows(int64_t rows, int64_t columns, int most) {
    int threads = 1;
    while (threads < most && threads * kVectorLength < columns) threads *= 2;
    const int together = threads < kRowThreads ? kRowThreads / threads : 1;
    return {dim3(grid_size(ceil_div(rows, together), kMaxGridX)), dim3(threads, together)};
}

// The same where the elements of a row have nothing to do with each other: a long row gets several blocks.
inline RowPlan plan_elements(int64_t rows, int64_t columns) {
    RowPlan plan = plan_rows(rows, columns, kRowThreads);
    const int64_t width = static_cast<int64_t>(plan.block.x) * kVectorLength;
    plan.grid.y = grid_size(ceil_div(columns, width), kMaxGridY);
    return plan;
}

// Calls f(word) with a word of 1, 2, 4, 8 or 16 bytes: the widest that divides all addresses and sizes of
// which `all` is the bitwise or.
template <class F>
void with_widest_word(uint64_t all, const F& f) {
    switch ((all | 16) & -(all | 16)) {
        case 16:
            return f(uint4{});
        case 8:
            return f(uint2{});
        case 4:
            return f(uint32_t{});
        case 2:
            return f(uint16_t{});
        default:
            return f(uint8_t{});
    }
}
inline uint64_t address_of(const void* p) { return reinterpret_cast<uintptr_t>(p); }

// Calls f(row) for each row of this thread; it may leave its warp behind, so f must not wait for other
// threads.
template <class F>
__device__ void each_row(int64_t rows, const F& f) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y;
    for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; row < rows; row += step)
        f(row);
}

// Calls f(column) for each vector of this thread, the grid's y being the parts of a row.
template <class F>
__device__ void each_column(int64_t columns, const F& f) {
    const int64_t width = static_cast<int64_t>(blockDim.x) * kVectorLength;
    for (int64_t c = blockIdx.y * width + threadIdx.x * kVectorLength; c < columns; c += gridDim.y * width)
        f(c);
}

// Up to kVectorLength elements of a row from p on, of which `left` are left; zeros beyond. With kVector they
// are all there, and p is aligned.
template <bool kVector, class T>
__device__ void load_part(const T* p, int64_t left, float* out) {
    if (kVector)
        load_vector(p, out);
    else
        load_some(p, left, out);
}

// The inverse: rounded to nearest even, to infinity beyond the largest finite value.
template <bool kVector, class T>
__device__ void store_part(const float* values, int64_t left, T* p) {
    if (kVector) {
        store_vector<false>(values, p);
    } else {
#pragma unroll
        for (int i = 0; i < kVectorLength; ++i)
            if (i < left) round_to(values[i], p + i);
    }
}

// A thread's vectors of one row, of which the first kHeld are read once and stay in registers.
template <class T, bool kVector, int kHeld>
class RowShare {
  public:
    // `columns` 0 for a row that is not there.
    __device__ RowShare(const T* row, int64_t columns) : row_(row), columns_(columns) {
#pragma unroll
        for (int i = 0; i < kHeld; ++i)
            if (column(i) < columns)
                load_part<kVector>(row + column(i), columns - column(i), held_ + i * kVectorLength);
    }

    static __device__ int64_t column(int64_t i) { return (i * blockDim.x + threadIdx.x) * kVectorLength; }

    // Calls f(column, i, values) for each vector; f may change the values of the first kHeld, which i
    // numbers; for the others i is kHeld and what is changed is lost.
    template <class F>
    __device__ void each(const F& f) {
#pragma unroll
        for (int i = 0; i < kHeld; ++i)
            if (column(i) < columns_) f(column(i), i, held_ + i * kVectorLength);
        for (int64_t c = column(kHeld); c < columns_; c += static_cast<int64_t>(blockDim.x) * kVectorLength) {
            float values[kVectorLength];
            load_part<kVector>(row_ + c, columns_ - c, values);
            f(c, kHeld, values);
        }
    }

    // The same of two rows at once.
    template <class U, class F>
    __device__ void each(RowShare<U, kVector, kHeld>& other, const F& f) {
        each([&](int64_t c, int i, float* values) {
            if (i < kHeld) return f(c, i, values, other.held_ + i * kVectorLength);
            float others[kVectorLength];
            load_part<kVector>(other.row_ + c, columns_ - c, others);
            f(c, i, values, others);
        });
    }

  private:
    template <class, bool, int>
    friend class RowShare;

    const T* row_;
    int64_t columns_;
    float held_[kHeld * kVectorLength];
};

}  // namespace dse::cuda
