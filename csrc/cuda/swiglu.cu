// Six bytes of BF16 move for an element of the product, ten for one of its gradient from tiles. The
// arithmetic is about as dear: 58 and 78 PTX instructions (counted by the simulator), where an H100 at full
// bandwidth issues 51 and 86. Both loads of a thread are under way before the first is used, which takes the
// registers of three blocks a multiprocessor; with four, ptxas moves the second behind the first sigmoid.
#include "cuda/quantize.cuh"
#include "cuda/reduce.cuh"
#include "cuda/rows.cuh"
#include "cuda/swiglu.cuh"
#include "cuda/tile.cuh"

namespace dse::cuda {
namespace {

__device__ float weight_of(const RowWeights& weights, int64_t row) {
    return weights.data == nullptr ? 1.0f : weights.data[row * weights.stride];
}

__device__ float product(float gate, float up, float weight) { return gate * sigmoid(gate) * up * weight; }

template <class T, bool kVector>
__global__ void __launch_bounds__(kRowThreads, 3)
    swiglu_kernel(FloatMatrix gate_up, RowWeights weights, T* __restrict__ out) {
    const int64_t width = gate_up.columns / 2;
    each_row(gate_up.rows, [&](int64_t row) {
        const T* const gates = static_cast<const T*>(gate_up.data) + row * gate_up.row_stride;
        const float weight = weight_of(weights, row);
        each_column(width, [&](int64_t c) {
            float gate[kVectorLength], up[kVectorLength];
            load_part<kVector>(gates + c, width - c, gate);
            load_part<kVector>(gates + width + c, width - c, up);
#pragma unroll
            for (int i = 0; i < kVectorLength; ++i) gate[i] = product(gate[i], up[i], weight);
            store_part<kVector>(gate, width - c, out + row * width + c);
        });
    });
}

constexpr int kTileRows = kRowThreads / kTileLanes;  // rows of a block, which takes one tile of each

// With kCache the tiles of gate and up are those of gate_up, so the width must be a multiple of 128.
template <class T, bool kVector, bool kCache>
__global__ void __launch_bounds__(kRowThreads)
    swiglu_quantize_kernel(FloatMatrix gate_up, RowWeights weights, bool power_of_2, TileOutput output,
                           TileOutput cache) {
    constexpr int kRun = E4M3Codes::kRun<T>;
    const int64_t width = gate_up.columns / 2, tiles = num_tiles(width);
    const int lane = threadIdx.x % kTileLanes;
    const int64_t tile = blockIdx.x, column = tile * kTile;
    const int64_t step = static_cast<int64_t>(gridDim.y) * kTileRows;
    for (int64_t first = static_cast<int64_t>(blockIdx.y) * kTileRows; first < gate_up.rows; first += step) {
        const int64_t row = first + threadIdx.x / kTileLanes;
        const int64_t left = row < gate_up.rows ? width - column : 0;  // absent rows take part in shuffles
        const T* const gates = static_cast<const T*>(gate_up.data) + row * gate_up.row_stride + column;
        const auto store = [&](const float* values, const TileOutput& to, int64_t columns, int64_t at) {
            const TileScale s = tile_scale<E4M3>(values, power_of_2);
            if (left <= 0) return;
            store_tile<E4M3Codes, kVector, kRun>(values, s, lane, left,
                                                 to.codes + row * columns + at * kTile);
            if (lane == 0)
                to.scales.data[row * to.scales.row_stride + at * to.scales.column_stride] = s.scale.scale;
        };
        float gate[kLaneElements], up[kLaneElements];
        load_tile<kVector, kRun>(gates, lane, left, gate);
        load_tile<kVector, kRun>(gates + width, lane, left, up);
        if (kCache) {
            store(gate, cache, gate_up.columns, tile);
            store(up, cache, gate_up.columns, tile + tiles);
        }
        const float weight = left > 0 ? weight_of(weights, row) : 0.0f;
#pragma unroll
        for (int i = 0; i < kLaneElements; ++i) gate[i] = product(gate[i], up[i], weight);
        store(gate, output, width, tile);
    }
}

// gate_up as numbers.
template <class T>
struct FloatSource {
    FloatMatrix x;

    template <bool kVector>
    __device__ void load(int64_t row, int64_t column, int64_t left, float* out) const {
        load_part<kVector>(static_cast<const T*>(x.data) + row * x.row_stride + column, left, out);
    }
};

// gate_up as tiles.
struct CodeSource {
    CodeMatrix x;

    template <bool kVector>
    __device__ void load(int64_t row, int64_t column, int64_t left, float* out) const {
        const uint8_t* const codes = x.codes + row * x.row_stride + column;
        const float* const scales = x.scales + row * x.scale_row_stride;
        if (kVector) {  // within one tile
            E4M3Codes::decode<kVectorLength>(E4M3Codes::fetch<true, kVectorLength>(codes, left),
                                             scales[column / kTile * x.scale_column_stride], out);
        } else {
#pragma unroll
            for (int i = 0; i < kVectorLength; ++i)
                out[i] =
                    i < left ? decode(codes[i], scales[(column + i) / kTile * x.scale_column_stride]) : 0.0f;
        }
    }

    static __device__ float decode(uint8_t code, float scale) {
        return saturated(E4M3::decode(code) * scale, kFloatMax);
    }
};

template <class Out>
struct Gradient {
    Out* grad_gate_up;
    float* grad_weights;  // null: not wanted
    Out* output;          // null: not wanted
};

template <class Source, class G, class Out, bool kVector>
__global__ void __launch_bounds__(kRowThreads, 3)
    swiglu_gradient_kernel(FloatMatrix grad, Source gate_up, RowWeights weights, Gradient<Out> result) {
    __shared__ float shared[kMaxWarps];
    const int64_t width = grad.columns;
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.y;
    for (int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.y; first < grad.rows; first += step) {
        const int64_t row = first + threadIdx.y;
        const bool present = row < grad.rows;
        const float weight = present ? weight_of(weights, row) : 0.0f;
        const G* const grads = static_cast<const G*>(grad.data) + row * grad.row_stride;
        RowSum sum;
        for (int64_t c = threadIdx.x * kVectorLength; c < (present ? width : 0);
             c += static_cast<int64_t>(blockDim.x) * kVectorLength) {
            const int64_t left = width - c;
            float gate[kVectorLength], up[kVectorLength], g[kVectorLength];
            load_part<kVector>(grads + c, left, g);
            gate_up.template load<kVector>(row, c, left, gate);
            gate_up.template load<kVector>(row, width + c, left, up);
            float grad_gate[kVectorLength], grad_up[kVectorLength], output[kVectorLength];
#pragma unroll
            for (int i = 0; i < kVectorLength; ++i) {
                const Sigmoids<float> s = sigmoids(gate[i]);
                const float silu = gate[i] * s.of_x, slope = multiply_add(silu, s.of_minus_x, s.of_x);
                const float weighted = g[i] * weight, unweighted = silu * up[i];
                sum.add_product(i, g[i], unweighted);
                grad_gate[i] = weighted * up[i] * slope;
                grad_up[i] = weighted * silu;
                output[i] = unweighted * weight;
            }
            Out* const out = result.grad_gate_up + row * 2 * width + c;
            store_part<kVector>(grad_gate, left, out);
            store_part<kVector>(grad_up, left, out + width);
            if (result.output) store_part<kVector>(output, left, result.output + row * width + c);
        }
        if (result.grad_weights == nullptr) continue;
        const float total = sum.total(shared);
        if (present && threadIdx.x == 0) result.grad_weights[row] = total;
    }
}

// Whether all of a gradient's rows are vectors throughout.
template <class Out>
bool is_vector(const FloatMatrix& grad, int64_t element, const Gradient<Out>& result) {
    return vector_rows(grad.data, grad.columns, grad.row_stride, element) &&
           is_aligned(result.grad_gate_up, 16) && is_aligned(result.output, 16);
}

template <class G, class Source, class Out>
void launch_gradient(const FloatMatrix& grad, const Source& gate_up, bool vector, const RowWeights& weights,
                     const Gradient<Out>& result, cudaStream_t stream) {
    if (grad.rows == 0) return;
    const RowPlan plan = plan_rows(grad.rows, grad.columns, kRowThreads);
    const auto kernel =
        vector ? swiglu_gradient_kernel<Source, G, Out, true> : swiglu_gradient_kernel<Source, G, Out, false>;
    kernel<<<plan.grid, plan.block, 0, stream>>>(grad, gate_up, weights, result);
}

// Whether gate and up are vectors throughout.
bool halves_are_vectors(const FloatMatrix& gate_up, int64_t element) {
    return gate_up.columns / 2 % kVectorLength == 0 &&
           vector_rows(gate_up.data, gate_up.columns, gate_up.row_stride, element);
}

}  // namespace

void swiglu(const FloatMatrix& gate_up, const RowWeights& weights, void* out, cudaStream_t stream) {
    const int64_t width = gate_up.columns / 2;
    if (gate_up.rows == 0 || width == 0) return;
    const RowPlan plan = plan_elements(gate_up.rows, width);
    with_type(gate_up.type, [&](auto zero) {
        using T = decltype(zero);
        const bool vector = halves_are_vectors(gate_up, sizeof(T)) && is_aligned(out, 16);
        const auto kernel = vector ? swiglu_kernel<T, true> : swiglu_kernel<T, false>;
        kernel<<<plan.grid, plan.block, 0, stream>>>(gate_up, weights, static_cast<T*>(out));
    });
}

void swiglu_quantize(const FloatMatrix& gate_up, const RowWeights& weights, bool power_of_2,
                     const TileOutput& output, const TileOutput& cache, cudaStream_t stream) {
    const int64_t width = gate_up.columns / 2;
    if (gate_up.rows == 0 || width == 0) return;
    const bool together = cache.codes != nullptr && width % kTile == 0;
    const dim3 grid(grid_size(num_tiles(width), kMaxGridX),
                    grid_size(ceil_div(gate_up.rows, kTileRows), kMaxGridY));
    with_type(gate_up.type, [&](auto zero) {
        using T = decltype(zero);
        const bool vector = halves_are_vectors(gate_up, sizeof(T)) && is_aligned(output.codes, 8) &&
                            is_aligned(cache.codes, 8);
        const auto kernel =
            together ? vector ? swiglu_quantize_kernel<T, true, true> : swiglu_quantize_kernel<T, false, true>
            : vector ? swiglu_quantize_kernel<T, true, false>
                     : swiglu_quantize_kernel<T, false, false>;
        kernel<<<grid, kRowThreads, 0, stream>>>(gate_up, weights, power_of_2, output, cache);
    });
    if (cache.codes != nullptr && !together)
        quantize_tiles(gate_up, power_of_2, cache.codes, cache.scales, stream);
}

void swiglu_gradient(const FloatMatrix& grad, const FloatMatrix& gate_up, const RowWeights& weights,
                     void* grad_gate_up, float* grad_weights, cudaStream_t stream) {
    with_type(gate_up.type, [&](auto zero) {
        using T = decltype(zero);
        const Gradient<T> result{static_cast<T*>(grad_gate_up), grad_weights, nullptr};
        const bool vector = is_vector(grad, sizeof(T), result) && halves_are_vectors(gate_up, sizeof(T));
        launch_gradient<T>(grad, FloatSource<T>{gate_up}, vector, weights, result, stream);
    });
}

void swiglu_backward(const FloatMatrix& grad, const CodeMatrix& gate_up, const RowWeights& weights,
                     uint16_t* grad_gate_up, float* grad_weights, uint16_t* output, cudaStream_t stream) {
    const Gradient<Bf16> result{reinterpret_cast<Bf16*>(grad_gate_up), grad_weights,
                                reinterpret_cast<Bf16*>(output)};
    with_type(grad.type, [&](auto zero) {
        using G = decltype(zero);
        const bool vector =
            is_vector(grad, sizeof(G), result) && is_aligned(gate_up.codes, 8) && gate_up.row_stride % 8 == 0;
        launch_gradient<G>(grad, CodeSource{gate_up}, vector, weights, result, stream);
    });
}

}  // namespace dse::cuda
