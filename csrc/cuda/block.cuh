// A 128x128 block held in the registers of 512 threads, and its codes on the way to the transposed layout.
//
// Thread t has eight columns of the four rows from 4 (t / 16) on, in runs of kRun neighbouring ones as in
// tile.cuh: a row of a block is read by sixteen neighbouring lanes, and the codes of four rows of a column
// make one word of the transpose.
#pragma once
#include <type_traits>

#include "cuda/tile.cuh"

namespace dse::cuda {

inline constexpr int kBlockThreads = 512;
inline constexpr int kBlockWarps = kBlockThreads / kWarpSize;
inline constexpr int kBlockSide = static_cast<int>(kTile);
inline constexpr int kThreadColumns = 8;
inline constexpr int kRowLanes = kBlockSide / kThreadColumns;               // threads that share a row
inline constexpr int kThreadRows = kBlockSide * kRowLanes / kBlockThreads;  // rows of a thread

// The column of a thread's i-th element of a row.
template <int kRun>
__device__ inline int thread_column(int i) {
    return (i / kRun * kRowLanes + static_cast<int>(threadIdx.x % kRowLanes)) * kRun + i % kRun;
}
__device__ inline int thread_row() { return static_cast<int>(threadIdx.x / kRowLanes) * kThreadRows; }

using ThreadRows = float[kThreadRows][kThreadColumns];

// An offset that is computed once: else nvcc multiplies anew for every row that is addressed from there.
__device__ inline int64_t settled(int64_t offset) {
    asm("" : "+l"(offset));
    return offset;
}

// Where a block's numbers come from. from(row, column) begins there, at the first column of a tile;
// fetch(row, column, count) gets kRun numbers of that tile, of which `count` exist. What is in memory is
// fetched first and converted later, so that a thread has all its loads under way at once; Raw{} is zeros.
template <class T, bool kVector>
struct FloatSource {
    static constexpr bool kHasRowResults = true;
    static constexpr int kRun = E4M3Codes::kRun<T>;
    const T* data;
    int64_t row_stride;

    struct Sixteen {
        uint4 bytes;
    };
    struct Floats {
        float of[kRun];
    };
    using Raw = std::conditional_t<kVector, Sixteen, Floats>;

    __device__ FloatSource from(int64_t row, int64_t column) const {
        return {data + settled(row * row_stride + column), row_stride};
    }
    __device__ Raw fetch(int row, int column, int count) const {
        const T* from = data + row * row_stride + column;
        Raw raw;
        if constexpr (kVector)
            raw.bytes = *reinterpret_cast<const uint4*>(from);
        else
            load_some<kRun>(from, count, raw.of);
        return raw;
    }
    __device__ void convert(const Raw& raw, float* values) const {
        if constexpr (kVector) {
            widen_sixteen(raw.bytes, values, T{});
        } else {
#pragma unroll
            for (int i = 0; i < kRun; ++i) values[i] = raw.of[i];
        }
    }
};

template <class Codes, bool kVector>
struct CodeSource {
    static constexpr bool kHasRowResults = false;
    static constexpr int kRun = 8;
    const uint8_t* codes;
    const float* scales;
    int64_t row_stride, scale_row_stride, scale_column_stride;

    struct Raw {
        CodeWords<Codes, kRun> words;
        float scale;
    };

    __device__ CodeSource from(int64_t row, int64_t column) const {
        return {codes + settled(row * row_stride + column / kTile * Codes::kBytes),
                scales + settled(row * scale_row_stride + column / kTile * scale_column_stride), row_stride,
                scale_row_stride, scale_column_stride};
    }
    __device__ Raw fetch(int row, int column, int count) const {
        const uint8_t* from = codes + row * row_stride + column * Codes::kBytes / kBlockSide;
        return {Codes::template fetch<kVector, kRun>(from, count), scales[row * scale_row_stride]};
    }
    __device__ void convert(const Raw& raw, float* values) const {
        Codes::template decode<kRun>(raw.words, raw.scale, values);
    }
};

// A thread's share of the block at (row, column), of which rows x columns exist, zeros elsewhere.
template <class Source>
__device__ inline void load_block(const Source& source, int64_t row, int rows, int64_t column, int columns,
                                  ThreadRows& values) {
    constexpr int kRun = Source::kRun, kRuns = kThreadColumns / kRun;
    const Source begin = source.from(row + thread_row(), column);
    typename Source::Raw raw[kThreadRows][kRuns];
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r)
#pragma unroll
        for (int i = 0; i < kRuns; ++i) {
            const int at = thread_column<kRun>(i * kRun);
            raw[r][i] = {};
            if (thread_row() + r < rows && at < columns) raw[r][i] = begin.fetch(r, at, columns - at);
        }
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r)
#pragma unroll
        for (int i = 0; i < kRuns; ++i) source.convert(raw[r][i], values[r] + i * kRun);
}

// A thread's share of a row of codes, of which `columns` exist; the block's row starts at `to`.
template <bool kVector, int kRun>
__device__ inline void store_row(const float (&values)[kThreadColumns], float multiplier, bool all_finite,
                                 int columns, uint8_t* to) {
#pragma unroll
    for (int i = 0; i < kThreadColumns; i += kRun) {
        const int at = thread_column<kRun>(i);
        if (at < columns)
            E4M3Codes::store<kVector, kRun>(values + i, multiplier, all_finite, columns - at, to + at);
    }
}

// The bytes of a block in shared memory, column by column: put as words of four rows, got as sixteen. The
// words of a column are permuted by its number, which leaves neither access a bank conflict: the lanes of a
// warp put columns kRun apart and two neighbouring words, and eight lanes get one whole column.
template <int kRun>
class TransposedBytes {
  public:
    // Four rows, the word-th of 32, of column `run + i`, where `run` is the first of a run of kRun columns.
    __device__ void put(int run, int i, int word, uint32_t bytes) {
        words_[(run + i) * kWords + (word ^ swizzle(run))] = bytes;
    }

    // Rows 16 i .. 16 i + 15 of a column.
    __device__ uint4 get(int column, int i) const {
        const int s = swizzle(column);
        const uint4 v = reinterpret_cast<const uint4*>(words_)[column * (kWords / 4) + (i ^ s / 4)];
        return s % 4 == 0 ? v : make_uint4(v.z, v.w, v.x, v.y);
    }

  private:
    static constexpr int kWords = kBlockSide / 4;
    static __device__ int swizzle(int column) { return column / kRun % kRowLanes * 2; }

    uint32_t words_[kBlockSide * kWords];  // at a 16-byte boundary: see alignas where it is declared
};

// f(column, i, bytes) for every sixteen rows of every column below `columns`, by all threads of the block.
template <int kRun, class F>
__device__ inline void each_sixteen(const TransposedBytes<kRun>& block, int columns, const F& f) {
    constexpr int kPerColumn = kBlockSide / 16;
#pragma unroll
    for (int at = 0; at < kBlockSide * kPerColumn; at += kBlockThreads) {
        const int index = at + static_cast<int>(threadIdx.x);
        const int column = index / kPerColumn, i = index % kPerColumn;
        if (column < columns) f(column, i, block.get(column, i));
    }
}

}  // namespace dse::cuda
