// Rows packed for other ranks and unpacked from them: copies, bound by memory, each byte read and written
// once. A thread takes 16 bytes of a row, so that neighbouring lanes touch neighbouring memory wherever the
// row lies; scales, which lie M-major here, are read or written by threads side by side for rows side by
// side.
#include "cuda/exchange.cuh"
#include "cuda/launch.cuh"
#include "cuda/permute.cuh"
#include "cuda/rows.cuh"
#include "formats/exchange.h"

namespace dse::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    exchange_ranks_kernel(Slots indices, int64_t experts_per_rank, int64_t num_ranks, int64_t width,
                          int32_t* ranks) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t t = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; t < indices.tokens; t += step)
        ranks_of_token(indices, t, experts_per_rank, num_ranks, width, ranks + t * width);
}

// The row that result i is made of, or -1.
__device__ int64_t source_of(const RowOrder& order, int64_t i, int64_t rows) {
    const int64_t row = order.rows == nullptr ? i : order.token(i);
    return row < rows ? row : -1;
}

// Words of 1, 2, 4, 8 or 16 bytes of one part whose rows have no gaps; zeros behind it up to its section's
// end.
template <class Word>
__global__ void __launch_bounds__(kThreads)
    pack_words_kernel(PackPart part, RowOrder order, uint8_t* out, int64_t row_bytes) {
    constexpr int64_t kSize = sizeof(Word);
    const int64_t width = part.width() / kSize, taken = section_of(part.width()) / kSize;
    const int64_t stride = part.row_stride * part.size / kSize;
    const Word* data = reinterpret_cast<const Word*>(part.data);
    each_row(order.count, [&](int64_t i) {
        const int64_t row = source_of(order, i, part.rows);
        Word* to = reinterpret_cast<Word*>(out + i * row_bytes);
        const int64_t step = static_cast<int64_t>(gridDim.y) * blockDim.x;
        for (int64_t c = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x; c < taken; c += step)
            to[c] = row < 0 || c >= width ? Word{} : data[row * stride + c];
    });
}

// Elements of 4 bytes that lie in any way, by rows: zeros behind them.
__global__ void __launch_bounds__(kThreads)
    pack_elements_kernel(PackPart part, RowOrder order, uint8_t* out, int64_t row_bytes) {
    const uint32_t* data = reinterpret_cast<const uint32_t*>(part.data);
    const int64_t taken = section_of(part.width()) / 4;
    const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < order.count; i += step) {
        const int64_t row = source_of(order, i, part.rows);
        uint32_t* to = reinterpret_cast<uint32_t*>(out + i * row_bytes);
        for (int64_t c = blockIdx.y; c < taken; c += gridDim.y)
            to[c] = row < 0 || c >= part.columns ? 0u : data[row * part.row_stride + c * part.column_stride];
    }
}

template <class Word>
void launch_pack(const PackPart& part, const RowOrder& order, uint8_t* out, int64_t row_bytes,
                 cudaStream_t stream) {
    const RowPlan plan = plan_elements(order.count, section_of(part.width()) / sizeof(Word));
    pack_words_kernel<Word><<<plan.grid, plan.block, 0, stream>>>(part, order, out, row_bytes);
}

// Scales, and as the column behind them gate weights.
__global__ void __launch_bounds__(kThreads)
    unpack_floats_kernel(PackedRows packed, RowOrder order, ScaleMatrix scales, float* weights) {
    const int64_t columns = packed.scales + (packed.weights > 0 ? 1 : 0);
    const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < order.count; i += step) {
        const int64_t row = source_of(order, i, packed.rows);
        for (int64_t c = blockIdx.y; c < columns; c += gridDim.y) {
            if (c < packed.scales)
                scales.data[i * scales.row_stride + c * scales.column_stride] =
                    row < 0 ? 1.0f : packed.floats(row, packed.scales_at())[c];
            else
                weights[i] = row < 0
                                 ? 0.0f
                                 : packed.floats(row, packed.weights_at())[order.rows[i] - row * order.top_k];
        }
    }
}

}  // namespace

void exchange_ranks(const Slots& indices, int64_t experts_per_rank, int64_t num_ranks, int64_t width,
                    int32_t* ranks, cudaStream_t stream) {
    if (indices.tokens == 0) return;
    const unsigned blocks = grid_size(ceil_div(indices.tokens, kThreads), kMaxGridX);
    exchange_ranks_kernel<<<blocks, kThreads, 0, stream>>>(indices, experts_per_rank, num_ranks, width,
                                                           ranks);
}

void pack_rows(const PackParts& parts, const RowOrder& order, uint8_t* out, cudaStream_t stream) {
    const int64_t row_bytes = parts.width();
    if (order.count == 0) return;
    for (int64_t p = 0; p < parts.count; ++p) {
        const PackPart& part = parts.part[p];
        if (part.width() == 0) continue;
        if (part.column_stride != 1 && part.columns > 1) {
            const int64_t words = section_of(part.width()) / 4;
            const dim3 grid(grid_size(ceil_div(order.count, kThreads), kMaxGridX),
                            grid_size(words, kMaxGridY));
            pack_elements_kernel<<<grid, kThreads, 0, stream>>>(part, order, out, row_bytes);
        } else {
            with_widest_word(
                address_of(part.data) | part.width() | part.row_stride * part.size | row_bytes,
                [&](auto word) { launch_pack<decltype(word)>(part, order, out, row_bytes, stream); });
        }
        out += section_of(part.width());
    }
}

void unpack_rows(const PackedRows& packed, const RowOrder& order, uint8_t* payload, const ScaleMatrix& scales,
                 float* weights, cudaStream_t stream) {
    if (order.count == 0) return;
    gather_bytes({packed.data, packed.rows, packed.payload, packed.width()}, order, payload, stream);
    const int64_t columns = packed.scales + (packed.weights > 0 ? 1 : 0);
    if (columns == 0) return;
    const dim3 grid(grid_size(ceil_div(order.count, kThreads), kMaxGridX), grid_size(columns, kMaxGridY));
    unpack_floats_kernel<<<grid, kThreads, 0, stream>>>(packed, order, scales, weights);
}

}  // namespace dse::cuda
