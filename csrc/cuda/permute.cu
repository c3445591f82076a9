// Rows brought into expert order and back.
//
// A thread takes a vector of a row, so that neighbouring lanes read and write neighbouring memory wherever
// the row lies. All of these are bound by memory: a gather reads and writes each byte of its result once; a
// combination reads K rows a token and writes one, four rows being under way at a time; an inner product
// reads each of the K rows once, and its token's row from the cache but for the first time.
#include "cuda/launch.cuh"
#include "cuda/permute.cuh"
#include "cuda/rows.cuh"
#include "cuda/warp.cuh"
#include "formats/tiles.h"

namespace dse::cuda {
namespace {

constexpr int kThreads = 256;

// The token that result i is a row of, or -1.
__device__ int64_t token_of(const RowOrder& order, int64_t i, int64_t tokens) {
    const int64_t token = order.token(i);
    return token < tokens ? token : -1;
}

// Words of 1, 2, 4, 8 or 16 bytes; stride and width count words.
template <class Word>
__global__ void __launch_bounds__(kThreads)
    gather_words_kernel(const Word* __restrict__ x, int64_t tokens, int64_t row_stride, int64_t width,
                        RowOrder order, Word* __restrict__ out) {
    each_row(order.count, [&](int64_t i) {
        const int64_t token = token_of(order, i, tokens);
        const int64_t step = static_cast<int64_t>(gridDim.y) * blockDim.x;
        for (int64_t c = static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x; c < width; c += step)
            out[i * width + c] = token < 0 ? Word{} : x[token * row_stride + c];
    });
}

template <class Word>
void launch_gather(const ByteMatrix& x, const RowOrder& order, uint8_t* out, cudaStream_t stream) {
    constexpr int64_t kSize = sizeof(Word);
    const int64_t width = x.width / kSize;
    // A thread takes four words of a row, to spread the cost of finding it.
    const RowPlan plan = plan_elements(order.count, width * kVectorLength / 4);
    gather_words_kernel<<<plan.grid, plan.block, 0, stream>>>(reinterpret_cast<const Word*>(x.data), x.rows,
                                                              x.row_stride / kSize, width, order,
                                                              reinterpret_cast<Word*>(out));
}

// Threads side by side take rows side by side, which is how M-major scales lie.
__global__ void __launch_bounds__(kThreads)
    gather_scales_kernel(const float* scales, int64_t tokens, int64_t columns, int64_t row_stride,
                         int64_t column_stride, RowOrder order, ScaleMatrix out) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < order.count; i += step) {
        const int64_t token = token_of(order, i, tokens);
        for (int64_t c = blockIdx.y; c < columns; c += gridDim.y)
            out.data[i * out.row_stride + c * out.column_stride] =
                token < 0 ? 1.0f : scales[token * row_stride + c * column_stride];
    }
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kRowThreads)
    gather_weighted_kernel(FloatMatrix x, const float* weights, RowOrder order, T* out) {
    each_row(order.count, [&](int64_t i) {
        const int64_t token = token_of(order, i, x.rows);
        const T* from = static_cast<const T*>(x.data) + token * x.row_stride;
        const float weight = token < 0 ? 0.0f : weights[order.rows[i]];
        each_column(x.columns, [&](int64_t c) {
            const int64_t left = x.columns - c;
            float values[kVectorLength] = {};
            if (token >= 0) {
                load_part<kVector>(from + c, left, values);
#pragma unroll
                for (int j = 0; j < kVectorLength; ++j) values[j] *= weight;
            }
            store_part<kVector>(values, left, out + i * x.columns + c);
        });
    });
}

template <class T, bool kVector, bool kWeighted>
__global__ void __launch_bounds__(kRowThreads)
    combine_kernel(FloatMatrix x, Slots slots, const float* weights, FloatMatrix residual, T* out) {
    constexpr int kTogether = kVector ? 4 : 1;  // rows that are read before the first is added
    each_row(slots.tokens, [&](int64_t t) {
        const int32_t* slot = slots.slots + t * slots.top_k;
        each_column(x.columns, [&](int64_t c) {
            const int64_t left = x.columns - c;
            float sum[kVectorLength] = {};
            for (int64_t first = 0; first < slots.top_k; first += kTogether) {
                float rows[kTogether][kVectorLength];
                bool present[kTogether];
#pragma unroll
                for (int r = 0; r < kTogether; ++r) {
                    const int64_t row = first + r < slots.top_k ? slot[first + r] : -1;
                    present[r] = row >= 0 && row < x.rows;
                    if (present[r])
                        load_part<kVector>(static_cast<const T*>(x.data) + row * x.row_stride + c, left,
                                           rows[r]);
                }
#pragma unroll
                for (int r = 0; r < kTogether; ++r) {
                    if (!present[r]) continue;
                    const float weight = kWeighted ? weights[t * slots.top_k + first + r] : 1.0f;
#pragma unroll
                    for (int j = 0; j < kVectorLength; ++j)
                        sum[j] += kWeighted ? rows[r][j] * weight : rows[r][j];
                }
            }
            if (residual.data != nullptr) {
                float added[kVectorLength];
                load_part<kVector>(static_cast<const T*>(residual.data) + t * residual.row_stride + c, left,
                                   added);
#pragma unroll
                for (int j = 0; j < kVectorLength; ++j) sum[j] += added[j];
            }
            store_part<kVector>(sum, left, out + t * x.columns + c);
        });
    });
}

// Two neighbouring elements.
__device__ void load_pair(const float* p, float& a, float& b) {
    const float2 pair = *reinterpret_cast<const float2*>(p);
    a = pair.x, b = pair.y;
}
template <class Half>
__device__ void load_pair(const Half* p, float& a, float& b) {
    const uint32_t word = *reinterpret_cast<const uint32_t*>(p);
    a = to_float(Half{static_cast<uint16_t>(word & 0xffffu)});
    b = to_float(Half{static_cast<uint16_t>(word >> 16)});
}

// A warp takes a choice, its lane l columns 2 l and 2 l + 1 of each 64. So the 64 partial sums are the CPU's,
// and so are the halves by which they are added.
template <class T, bool kPairs>
__global__ void __launch_bounds__(kThreads)
    row_dots_kernel(FloatMatrix x, FloatMatrix y, Slots slots, float* out) {
    constexpr int kSums = 2 * kWarpSize;
    const int lane = threadIdx.x % kWarpSize;
    const int64_t count = slots.tokens * slots.top_k;
    const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / kWarpSize);
    for (int64_t at = static_cast<int64_t>(blockIdx.x) * (kThreads / kWarpSize) + threadIdx.x / kWarpSize;
         at < count; at += step) {
        const int64_t slot = slots.slots[at];
        if (slot < 0 || slot >= y.rows) {
            if (lane == 0) out[at] = 0.0f;
            continue;
        }
        // Divided in 32 bits, which hold every choice.
        const int64_t token = static_cast<uint32_t>(at) / static_cast<uint32_t>(slots.top_k);
        const T* a = static_cast<const T*>(x.data) + token * x.row_stride;
        const T* b = static_cast<const T*>(y.data) + slot * y.row_stride;
        float even = 0.0f, odd = 0.0f;
        int64_t c = 2 * lane;
        if (kPairs) {
#pragma unroll 4
            for (; c + 1 < x.columns; c += kSums) {
                float a0, a1, b0, b1;
                load_pair(a + c, a0, a1);
                load_pair(b + c, b0, b1);
                even += a0 * b0;
                odd += a1 * b1;
            }
        }
        for (; c < x.columns; c += kSums) {
            even += to_float(a[c]) * to_float(b[c]);
            if (c + 1 < x.columns) odd += to_float(a[c + 1]) * to_float(b[c + 1]);
        }
        for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
            even += __shfl_down_sync(kAllLanes, even, distance);
            odd += __shfl_down_sync(kAllLanes, odd, distance);
        }
        if (lane == 0) out[at] = even + odd;
    }
}

template <class T>
bool has_pairs(const FloatMatrix& x) {
    return is_aligned(x.data, 2 * sizeof(T)) && x.row_stride % 2 == 0;
}

}  // namespace

void gather_bytes(const ByteMatrix& x, const RowOrder& order, uint8_t* out, cudaStream_t stream) {
    if (order.count == 0 || x.width == 0) return;
    with_widest_word(address_of(x.data) | address_of(out) | x.row_stride | x.width,
                     [&](auto word) { launch_gather<decltype(word)>(x, order, out, stream); });
}

void gather_scales(const float* scales, int64_t tokens, int64_t columns, int64_t row_stride,
                   int64_t column_stride, const RowOrder& order, const ScaleMatrix& out,
                   cudaStream_t stream) {
    if (order.count == 0 || columns == 0) return;
    const dim3 grid(grid_size(ceil_div(order.count, kThreads), kMaxGridX), grid_size(columns, kMaxGridY));
    gather_scales_kernel<<<grid, kThreads, 0, stream>>>(scales, tokens, columns, row_stride, column_stride,
                                                        order, out);
}

void gather_weighted(const FloatMatrix& x, const float* weights, const RowOrder& order, void* out,
                     cudaStream_t stream) {
    if (order.count == 0 || x.columns == 0) return;
    const RowPlan plan = plan_elements(order.count, x.columns);
    with_type(x.type, [&](auto zero) {
        using T = decltype(zero);
        const bool vector = vector_rows(x.data, x.columns, x.row_stride, sizeof(T)) && is_aligned(out, 16);
        const auto kernel = vector ? gather_weighted_kernel<T, true> : gather_weighted_kernel<T, false>;
        kernel<<<plan.grid, plan.block, 0, stream>>>(x, weights, order, static_cast<T*>(out));
    });
}

void combine_rows(const FloatMatrix& x, const Slots& slots, const float* weights, const FloatMatrix& residual,
                  void* out, cudaStream_t stream) {
    if (slots.tokens == 0 || x.columns == 0) return;
    const RowPlan plan = plan_elements(slots.tokens, x.columns);
    with_type(x.type, [&](auto zero) {
        using T = decltype(zero);
        const auto in_vectors = [&](const FloatMatrix& m) {
            return vector_rows(m.data, x.columns, m.row_stride, sizeof(T));
        };
        const bool vector =
            in_vectors(x) && is_aligned(out, 16) && (residual.data == nullptr || in_vectors(residual));
        const auto kernel =
            vector ? weights != nullptr ? combine_kernel<T, true, true> : combine_kernel<T, true, false>
            : weights != nullptr ? combine_kernel<T, false, true>
                                 : combine_kernel<T, false, false>;
        kernel<<<plan.grid, plan.block, 0, stream>>>(x, slots, weights, residual, static_cast<T*>(out));
    });
}

void row_dots(const FloatMatrix& x, const FloatMatrix& y, const Slots& slots, float* out,
              cudaStream_t stream) {
    const int64_t count = slots.tokens * slots.top_k;
    if (count == 0) return;
    const unsigned blocks = grid_size(ceil_div(count, kThreads / kWarpSize), kMaxGridX);
    with_type(x.type, [&](auto zero) {
        using T = decltype(zero);
        const auto kernel =
            has_pairs<T>(x) && has_pairs<T>(y) ? row_dots_kernel<T, true> : row_dots_kernel<T, false>;
        kernel<<<blocks, kThreads, 0, stream>>>(x, y, slots, out);
    });
}

}  // namespace dse::cuda
