// A 128x128 block held in the registers of 512 threads, and its codes on the way to the transposed layout.
//
// Thread t has the eight columns from 8 (t % 16) on of the four rows from 4 (t / 16) on: a row of a block is
// read by sixteen neighbouring lanes, and the codes of four rows of a column make one word of the transpose.
#pragma once
#include "cuda/tile.cuh"

namespace dse::cuda {

inline constexpr int kBlockThreads = 512;
inline constexpr int kBlockWarps = kBlockThreads / kWarpSize;
inline constexpr int kBlockSide = static_cast<int>(kTile);
inline constexpr int kRowLanes = kBlockSide / kVectorLength;                // threads that share a row
inline constexpr int kThreadRows = kBlockSide * kRowLanes / kBlockThreads;  // rows of a thread

__device__ inline int thread_column() { return threadIdx.x % kRowLanes * kVectorLength; }
__device__ inline int thread_row() { return threadIdx.x / kRowLanes * kThreadRows; }

using ThreadRows = float[kThreadRows][kVectorLength];

// Where a block's numbers come from: eight of them from (row, column) on, of which `count` exist.
template <class T, bool kVector>
struct FloatSource {
    static constexpr bool kHasRowResults = true;
    const T* data;
    int64_t row_stride;

    __device__ void load(int64_t row, int64_t column, int count, float* values) const {
        const T* from = data + row * row_stride + column;
        if (kVector)
            load_vector(from, values);
        else
            load_some(from, count, values);
    }
};

template <class Codes, bool kVector>
struct CodeSource {
    static constexpr bool kHasRowResults = false;
    const uint8_t* codes;
    const float* scales;
    int64_t row_stride, scale_row_stride, scale_column_stride;

    __device__ void load(int64_t row, int64_t column, int count, float* values) const {
        const uint8_t* from = codes + row * row_stride + column * Codes::kBytes / kTile;
        const float scale = scales[row * scale_row_stride + column / kTile * scale_column_stride];
        Codes::template load<kVector>(from, scale, count, values);
    }
};

// A thread's share of the block at (row, column), of which rows x columns exist, zeros elsewhere.
template <class Source>
__device__ inline void load_block(const Source& source, int64_t row, int rows, int64_t column, int columns,
                                  ThreadRows& values) {
    const int left = columns - thread_column();
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
        if (thread_row() + r < rows && left > 0) {
            source.load(row + thread_row() + r, column + thread_column(), left, values[r]);
        } else {
#pragma unroll
            for (int i = 0; i < kVectorLength; ++i) values[r][i] = 0.0f;
        }
    }
}

// The bytes of a block in shared memory, column by column: put as words of four rows, got as sixteen. The
// words of a column are permuted by its number, which leaves neither access a bank conflict: the lanes of a
// warp put columns 8 apart and two neighbouring words, and eight lanes get one whole column.
class TransposedBytes {
  public:
    __device__ void put(int column, int word, uint32_t bytes) {
        words_[column * kWords + (word ^ swizzle(column))] = bytes;
    }

    // Rows 16 i .. 16 i + 15 of a column.
    __device__ uint4 get(int column, int i) const {
        const int s = swizzle(column);
        const uint4 v = reinterpret_cast<const uint4*>(words_)[column * (kWords / 4) + (i ^ s / 4)];
        return s % 4 == 0 ? v : make_uint4(v.z, v.w, v.x, v.y);
    }

  private:
    static constexpr int kWords = kBlockSide / 4;
    static __device__ int swizzle(int column) { return column / kVectorLength * 2; }

    uint32_t words_[kBlockSide * kWords];  // at a 16-byte boundary: see alignas where it is declared
};

// f(column, i, bytes) for every sixteen rows of every column below `columns`, by all threads of the block.
template <class F>
__device__ inline void each_sixteen(const TransposedBytes& block, int columns, const F& f) {
    constexpr int kPerColumn = kBlockSide / 16;
#pragma unroll
    for (int at = 0; at < kBlockSide * kPerColumn; at += kBlockThreads) {
        const int index = at + static_cast<int>(threadIdx.x);
        const int column = index / kPerColumn, i = index % kPerColumn;
        if (column < columns) f(column, i, block.get(column, i));
    }
}

}  // namespace dse::cuda
