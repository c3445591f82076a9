// Row tiles.
//
// Eight lanes share a tile, each with two Vectors that lie half a tile apart, so that neighbouring lanes read
// and write neighbouring memory and one division serves 16 elements. A warp takes four rows, so that four
// scales of a column lie side by side in the M-major layout. Bound by memory: 2 + 1 bytes an element of BF16.
#include "cuda/launch.cuh"
#include "cuda/quantize.cuh"
#include "cuda/vector.cuh"
#include "formats/e4m3.h"
#include "formats/scale.h"
#include "formats/tiles.h"

namespace dse::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTileLanes = 8;  // lanes that share a tile
constexpr int kTilesPerWarp = 32 / kTileLanes;
constexpr int kTilesPerBlock = kThreads / kTileLanes;
constexpr int kHalfTile = static_cast<int>(kTile) / 2;

// The largest finite magnitude, as bits, whose order is that of the numbers.
__device__ uint32_t finite_amax_bits(const float* x, int n) {
    uint32_t amax = 0;
    for (int i = 0; i < n; ++i) {
        const uint32_t magnitude = float_bits(x[i]) & 0x7fffffffu;
        amax = max(amax, magnitude < kFloatInfBits ? magnitude : 0u);
    }
    return amax;
}

// What is not finite becomes NaN.
template <class Format>
__device__ auto encode(float x, float multiplier) {
    return is_finite(x) ? Format::encode(x * multiplier) : Format::kNaN;
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kThreads)
    quantize_tiles_kernel(FloatMatrix x, bool power_of_2, uint8_t* codes, ScaleMatrix scales,
                          int tile_columns_log2) {
    const int lane = threadIdx.x % kTileLanes, warp = threadIdx.x / 32;
    const int64_t tile =
        (static_cast<int64_t>(blockIdx.x) << tile_columns_log2) + (warp & ((1 << tile_columns_log2) - 1));
    const int row_in_block = (warp >> tile_columns_log2) * kTilesPerWarp + threadIdx.x % 32 / kTileLanes;
    const int rows_per_block = kTilesPerBlock >> tile_columns_log2;
    const int64_t column = tile * kTile + lane * kVectorLength;
    for (int64_t first = static_cast<int64_t>(blockIdx.y) * rows_per_block; first < x.rows;
         first += static_cast<int64_t>(gridDim.y) * rows_per_block) {
        const int64_t row = first + row_in_block;
        const bool present = row < x.rows;  // an absent row's lanes still take part in the shuffles
        const T* from = static_cast<const T*>(x.data) + row * x.row_stride + column;
        float values[2 * kVectorLength];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int64_t left = present ? x.columns - column - half * kHalfTile : 0;
            if (kVector && left > 0)
                load_vector(from + half * kHalfTile, values + half * kVectorLength);
            else
                load_some(from + half * kHalfTile, kVector ? 0 : left, values + half * kVectorLength);
        }
        const uint32_t amax = largest_of_lanes<kTileLanes>(finite_amax_bits(values, 2 * kVectorLength));
        if (!present || tile * kTile >= x.columns) continue;
        const Scale s = scale_of<E4M3>(bits_float(amax), power_of_2);
        if (lane == 0) scales.data[row * scales.row_stride + tile * scales.column_stride] = s.scale;
        uint8_t* to = codes + row * x.columns + column;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int64_t left = x.columns - column - half * kHalfTile;
            uint8_t bytes[kVectorLength];
#pragma unroll
            for (int i = 0; i < kVectorLength; ++i)
                bytes[i] = encode<E4M3>(values[half * kVectorLength + i], s.multiplier);
            if (kVector) {
                if (left > 0)
                    *reinterpret_cast<uint2*>(to + half * kHalfTile) =
                        make_uint2(word_of(bytes), word_of(bytes + 4));
            } else {
#pragma unroll
                for (int i = 0; i < kVectorLength; ++i)
                    if (i < left) to[half * kHalfTile + i] = bytes[i];
            }
        }
    }
}

}  // namespace

void quantize_tiles(const FloatMatrix& x, bool power_of_2, uint8_t* codes, const ScaleMatrix& scales,
                    cudaStream_t stream) {
    if (x.rows == 0 || x.columns == 0) return;
    const int64_t tiles = num_tiles(x.columns);
    const int log2 = tiles >= 4 ? 2 : tiles >= 2 ? 1 : 0;
    const dim3 grid(grid_size(ceil_div(tiles, 1 << log2), kMaxGridX),
                    grid_size(ceil_div(x.rows, kTilesPerBlock >> log2), kMaxGridY));
    with_type(x.type, [&](auto zero) {
        using T = decltype(zero);
        const bool vector = vector_rows(x.data, x.columns, x.row_stride, sizeof(T)) && is_aligned(codes, 8);
        const auto kernel = vector ? quantize_tiles_kernel<T, true> : quantize_tiles_kernel<T, false>;
        kernel<<<grid, kThreads, 0, stream>>>(x, power_of_2, codes, scales, log2);
    });
}

}  // namespace dse::cuda
