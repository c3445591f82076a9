// Row tiles to codes and back.
//
// Eight lanes share a tile (cuda/tile.cuh); a warp takes four rows of one column of tiles, so that four
// scales lie side by side in the M-major layout, and a block as many rows of up to four columns. Bound by
// memory: 3 bytes an element from BF16 to E4M3.
#include "cuda/launch.cuh"
#include "cuda/quantize.cuh"
#include "cuda/tile.cuh"

namespace dse::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerWarp = kWarpSize / kTileLanes;
constexpr int kWarps = kThreads / kWarpSize;

// How a matrix of tiles is cut into blocks: 2^tile_columns_log2 tiles wide and rows_per_block() high.
struct TileGrid {
    int64_t rows, columns;
    int tile_columns_log2;

    explicit TileGrid(int64_t rows_, int64_t columns_) : rows(rows_), columns(columns_) {
        const int64_t tiles = num_tiles(columns);
        tile_columns_log2 = tiles >= 4 ? 2 : tiles >= 2 ? 1 : 0;
    }
    __host__ __device__ int rows_per_block() const { return kWarps * kRowsPerWarp >> tile_columns_log2; }
    dim3 blocks() const {
        return dim3(grid_size(ceil_div(num_tiles(columns), 1 << tile_columns_log2), kMaxGridX),
                    grid_size(ceil_div(rows, rows_per_block()), kMaxGridY));
    }

#ifdef __CUDACC__
    // f(row, tile, left, lane): `left` elements of the row from the tile on, none where there is no such row.
    template <class F>
    __device__ void each(const F& f) const {
        const int lane = threadIdx.x % kTileLanes, warp = threadIdx.x / kWarpSize;
        const int64_t tile =
            (static_cast<int64_t>(blockIdx.x) << tile_columns_log2) + (warp & ((1 << tile_columns_log2) - 1));
        const int row_in_block =
            (warp >> tile_columns_log2) * kRowsPerWarp + threadIdx.x % kWarpSize / kTileLanes;
        for (int64_t first = static_cast<int64_t>(blockIdx.y) * rows_per_block(); first < rows;
             first += static_cast<int64_t>(gridDim.y) * rows_per_block()) {
            const int64_t row = first + row_in_block;
            f(row, tile, row < rows ? columns - tile * kTile : 0, lane);
        }
    }
#endif
};

template <class Codes, class T, bool kVector>
__global__ void __launch_bounds__(kThreads)
    encode_kernel(TileGrid grid, FloatMatrix x, bool power_of_2, uint8_t* codes, ScaleMatrix scales) {
    grid.each([&](int64_t row, int64_t tile, int64_t left, int lane) {
        constexpr int kRun = Codes::template kRun<T>;
        float values[kLaneElements];
        load_tile<kVector, kRun>(static_cast<const T*>(x.data) + row * x.row_stride + tile * kTile, lane,
                                 left, values);
        const TileScale s = tile_scale<typename Codes::Format>(values, power_of_2);
        if (left <= 0) return;
        if (lane == 0) scales.data[row * scales.row_stride + tile * scales.column_stride] = s.scale.scale;
        store_tile<Codes, kVector, kRun>(values, s, lane, left,
                                         codes + row * Codes::row_bytes(x.columns) + tile * Codes::kBytes);
    });
}

template <class Codes>
void encode(const FloatMatrix& x, bool power_of_2, uint8_t* codes, const ScaleMatrix& scales,
            cudaStream_t stream) {
    if (x.rows == 0 || x.columns == 0) return;
    const TileGrid grid(x.rows, x.columns);
    with_type(x.type, [&](auto zero) {
        using T = decltype(zero);
        const bool vector =
            vector_rows(x.data, x.columns, x.row_stride, sizeof(T)) && is_aligned(codes, Codes::kAlignment);
        const auto kernel = vector ? encode_kernel<Codes, T, true> : encode_kernel<Codes, T, false>;
        kernel<<<grid.blocks(), kThreads, 0, stream>>>(grid, x, power_of_2, codes, scales);
    });
}

// Codes and where they lie; the scale of (r, c) is at
// scales[r / rows_per_scale * scale_row_stride + c / 128 * scale_column_stride].
struct Coded {
    const uint8_t* codes;
    const float* scales;
    int64_t row_stride, scale_row_stride, scale_column_stride;
    bool in_blocks;  // rows_per_scale is 128, not 1
    Stack stack;
};

template <class Codes, class T, bool kVector>
__global__ void __launch_bounds__(kThreads) decode_kernel(TileGrid grid, Coded x, T* out) {
    for (int64_t matrix = blockIdx.z; matrix < x.stack.count; matrix += gridDim.z) {
        const uint8_t* codes = x.codes + matrix * x.stack.matrix_stride;
        const float* scales = x.scales + matrix * x.stack.scale_stride;
        T* result = out + matrix * grid.rows * grid.columns;
        grid.each([&](int64_t row, int64_t tile, int64_t left, int lane) {
            constexpr int kRun = Codes::template kRun<T>;
            if (left <= 0) return;
            const int64_t scale_row = x.in_blocks ? row / kTile : row;
            const float scale = scales[scale_row * x.scale_row_stride + tile * x.scale_column_stride];
#pragma unroll
            for (int run = 0; run < kLaneElements / kRun; ++run) {
                const int at = lane_element<kRun>(lane, run);
                if (at >= left) continue;
                float values[kRun];
                const uint8_t* from = codes + row * x.row_stride + tile * Codes::kBytes +
                                      at * Codes::kBytes / static_cast<int>(kTile);
                Codes::template decode<kRun>(Codes::template fetch<kVector, kRun>(from, left - at), scale,
                                             values);
                T* to = result + row * grid.columns + tile * kTile + at;
                if constexpr (kVector) {
                    store_vector<true, kRun>(values, to);
                } else {
#pragma unroll
                    for (int i = 0; i < kRun; ++i)
                        if (i < left - at) from_float(values[i], to + i);
                }
            }
        });
    }
}

template <class Codes>
void decode(const Coded& x, int64_t rows, int64_t columns, FloatType type, void* out, cudaStream_t stream) {
    if (x.stack.count == 0 || rows == 0 || columns == 0) return;
    const TileGrid grid(rows, columns);
    dim3 blocks = grid.blocks();
    blocks.z = grid_size(x.stack.count, kMaxGridY);
    with_type(type, [&](auto zero) {
        using T = decltype(zero);
        const bool vector = columns % kVectorLength == 0 && is_aligned(out, 16) &&
                            is_aligned(x.codes, Codes::kAlignment) && x.row_stride % Codes::kAlignment == 0 &&
                            x.stack.matrix_stride % Codes::kAlignment == 0;
        const auto kernel = vector ? decode_kernel<Codes, T, true> : decode_kernel<Codes, T, false>;
        kernel<<<blocks, kThreads, 0, stream>>>(grid, x, static_cast<T*>(out));
    });
}

}  // namespace

void quantize_tiles(const FloatMatrix& x, bool power_of_2, uint8_t* codes, const ScaleMatrix& scales,
                    cudaStream_t stream) {
    encode<E4M3Codes>(x, power_of_2, codes, scales, stream);
}

void quantize_e5m6(const FloatMatrix& x, uint8_t* packed, const ScaleMatrix& scales, cudaStream_t stream) {
    encode<E5M6Codes>(x, true, packed, scales, stream);
}

void dequantize(const CodeMatrix& x, const Stack& stack, FloatType type, void* out, cudaStream_t stream) {
    decode<E4M3Codes>({x.codes, x.scales, x.row_stride, x.scale_row_stride, x.scale_column_stride,
                       x.rows_per_scale == kTile, stack},
                      x.rows, x.columns, type, out, stream);
}

void dequantize_e5m6(const PackedMatrix& x, FloatType type, void* out, cudaStream_t stream) {
    const Stack one{1, 0, 0};
    decode<E5M6Codes>(
        {x.packed, x.scales, x.row_stride, x.scale_row_stride, x.scale_column_stride, false, one}, x.rows,
        x.columns, type, out, stream);
}

}  // namespace dse::cuda
