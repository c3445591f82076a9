// Weights in 128x128 blocks, and their transposes. One thread block makes one block of codes at a time, which
// it reads once. Bound by memory: 5 bytes an element from FP32, 2 for a transpose.
#include <type_traits>

#include "cuda/block.cuh"
#include "cuda/launch.cuh"
#include "cuda/quantize.cuh"

namespace dse::cuda {
namespace {

// A stack of matrices cut into blocks, one for each thread block.
struct BlockGrid {
    int64_t count, rows, columns;

    __host__ __device__ int64_t down() const { return num_tiles(rows); }
    __host__ __device__ int64_t across() const { return num_tiles(columns); }
    unsigned blocks() const { return static_cast<unsigned>(count * down() * across()); }
};

// The block of this thread block: `rows` x `columns` of it exist.
struct Block {
    int64_t matrix, row, column;
    int rows, columns;

    __device__ explicit Block(const BlockGrid& grid) {
        const auto across = static_cast<unsigned>(grid.across()), down = static_cast<unsigned>(grid.down());
        const unsigned band = blockIdx.x / across;
        matrix = band / down;
        row = static_cast<int64_t>(band % down) * kTile;
        column = static_cast<int64_t>(blockIdx.x % across) * kTile;
        rows = static_cast<int>(min(grid.rows - row, kTile));
        columns = static_cast<int>(min(grid.columns - column, kTile));
    }
};

// Blocks a multiprocessor: with two, BF16 rows and the codes' arithmetic of sm_80 want 66 of 64 registers.
template <class T, bool kVector>
constexpr int blocks_of() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 890
    if (kVector && std::is_same_v<T, Bf16>) return 1;
#endif
    return 2;
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kBlockThreads, blocks_of<T, kVector>())
    quantize_blocks_kernel(BlockGrid grid, FloatMatrix w, int64_t matrix_stride, bool power_of_2,
                           uint8_t* codes, ScaleMatrix scales) {
    __shared__ uint32_t maxima[kBlockWarps];
    const Block block(grid);
    const FloatSource<T, kVector> source{static_cast<const T*>(w.data) + block.matrix * matrix_stride,
                                         w.row_stride};
    ThreadRows values;
    load_block(source, block.row, block.rows, block.column, block.columns, values);
    uint32_t amax = 0;
    bool all_finite = true;
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
        const Magnitude row = magnitude_of<kThreadColumns>(values[r]);
        amax = max(amax, row.bits);
        all_finite = all_finite && row.all_finite;
    }
    amax = largest_of_lanes<kWarpSize>(amax);
    if (threadIdx.x % kWarpSize == 0) maxima[threadIdx.x / kWarpSize] = amax;
    __syncthreads();
    amax = largest_of_lanes<kBlockWarps>(maxima[threadIdx.x % kBlockWarps]);
    const Scale s = scale_of<E4M3>(bits_float(amax), power_of_2);
    if (threadIdx.x == 0)
        scales.data[(block.matrix * grid.down() + block.row / kTile) * scales.row_stride +
                    block.column / kTile * scales.column_stride] = s.scale;
    uint8_t* to = codes + (block.matrix * grid.rows + block.row + thread_row()) * grid.columns + block.column;
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r)
        if (thread_row() + r < block.rows)
            store_row<kVector, FloatSource<T, kVector>::kRun>(values[r], s.multiplier, all_finite,
                                                              block.columns, to + r * grid.columns);
}

// Eight bytes from `from` on, of which `count` exist, zeros for the rest.
template <bool kVector>
__device__ uint2 load_bytes(const uint8_t* from, int count) {
    if constexpr (kVector) {
        return *reinterpret_cast<const uint2*>(from);
    } else {
        uint8_t bytes[kVectorLength];
#pragma unroll
        for (int i = 0; i < kVectorLength; ++i) bytes[i] = i < count ? from[i] : 0;
        return make_uint2(word_of(bytes), word_of(bytes + 4));
    }
}

// Word c of the result holds byte c of each of four words.
__device__ void transpose_words(uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint32_t* out) {
    const uint32_t ab_low = __byte_perm(a, b, 0x5140), ab_high = __byte_perm(a, b, 0x7362);
    const uint32_t cd_low = __byte_perm(c, d, 0x5140), cd_high = __byte_perm(c, d, 0x7362);
    out[0] = __byte_perm(ab_low, cd_low, 0x5410);
    out[1] = __byte_perm(ab_low, cd_low, 0x7632);
    out[2] = __byte_perm(ab_high, cd_high, 0x5410);
    out[3] = __byte_perm(ab_high, cd_high, 0x7632);
}

// kVector: rows of the input lie on 8-byte boundaries. kVectorOut: rows of the result on 16-byte ones.
template <bool kVector, bool kVectorOut>
__global__ void __launch_bounds__(kBlockThreads, 2)
    transpose_blocks_kernel(BlockGrid grid, CodeMatrix w, Stack stack, uint8_t* codes_t,
                            ScaleMatrix scales_t) {
    constexpr int kRun = kThreadColumns;
    __shared__ alignas(16) TransposedBytes<kRun> transposed;
    const Block block(grid);
    const uint8_t* from = w.codes + block.matrix * stack.matrix_stride +
                          (block.row + thread_row()) * w.row_stride + block.column + thread_column<kRun>(0);
    const int left = block.columns - thread_column<kRun>(0);
    uint2 rows[kThreadRows];
#pragma unroll
    for (int r = 0; r < kThreadRows; ++r) {
        const bool present = thread_row() + r < block.rows && left > 0;
        rows[r] = present ? load_bytes<kVector>(from + r * w.row_stride, left) : make_uint2(0, 0);
    }
    uint32_t columns[kThreadColumns];
    static_assert(kThreadRows == 4);
    transpose_words(rows[0].x, rows[1].x, rows[2].x, rows[3].x, columns);
    transpose_words(rows[0].y, rows[1].y, rows[2].y, rows[3].y, columns + 4);
#pragma unroll
    for (int i = 0; i < kThreadColumns; ++i)
        transposed.put(thread_column<kRun>(0), i, thread_row() / kThreadRows, columns[i]);
    if (threadIdx.x == 0)
        scales_t.data[(block.matrix * grid.across() + block.column / kTile) * scales_t.row_stride +
                      block.row / kTile * scales_t.column_stride] =
            w.scales[block.matrix * stack.scale_stride + block.row / kTile * w.scale_row_stride +
                     block.column / kTile * w.scale_column_stride];
    __syncthreads();
    uint8_t* to = codes_t + (block.matrix * grid.columns + block.column) * grid.rows + block.row;
    each_sixteen(transposed, block.columns, [&](int c, int i, uint4 bytes) {
        if (kVectorOut) {
            if (16 * i < block.rows) reinterpret_cast<uint4*>(to + c * grid.rows)[i] = bytes;
        } else {
            const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
            for (int b = 0; b < 16; ++b)
                if (16 * i + b < block.rows)
                    to[c * grid.rows + 16 * i + b] = static_cast<uint8_t>(words[b / 4] >> 8 * (b % 4));
        }
    });
}

}  // namespace

void quantize_blocks(const FloatMatrix& w, const Stack& stack, bool power_of_2, uint8_t* codes,
                     const ScaleMatrix& scales, cudaStream_t stream) {
    const BlockGrid grid{stack.count, w.rows, w.columns};
    if (grid.blocks() == 0) return;
    with_type(w.type, [&](auto zero) {
        using T = decltype(zero);
        const bool vector = vector_rows(w.data, w.columns, w.row_stride, sizeof(T)) &&
                            stack.matrix_stride * sizeof(T) % 16 == 0 && is_aligned(codes, 8);
        const auto kernel = vector ? quantize_blocks_kernel<T, true> : quantize_blocks_kernel<T, false>;
        kernel<<<grid.blocks(), kBlockThreads, 0, stream>>>(grid, w, stack.matrix_stride, power_of_2, codes,
                                                            scales);
    });
}

void transpose_blocks(const CodeMatrix& w, const Stack& stack, uint8_t* codes_t, const ScaleMatrix& scales_t,
                      cudaStream_t stream) {
    const BlockGrid grid{stack.count, w.rows, w.columns};
    if (grid.blocks() == 0) return;
    const bool vector =
        is_aligned(w.codes, 8) && w.columns % 8 == 0 && w.row_stride % 8 == 0 && stack.matrix_stride % 8 == 0;
    const bool vector_out = is_aligned(codes_t, 16) && w.rows % 16 == 0;
    const auto kernel =
        vector ? (vector_out ? transpose_blocks_kernel<true, true> : transpose_blocks_kernel<true, false>)
               : (vector_out ? transpose_blocks_kernel<false, true> : transpose_blocks_kernel<false, false>);
    kernel<<<grid.blocks(), kBlockThreads, 0, stream>>>(grid, w, stack, codes_t, scales_t);
}

}  // namespace dse::cuda
