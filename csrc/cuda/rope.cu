// Bound by memory: every element is read once and written once, but for the shared key and the rotation,
// which the heads of a token find in the cache. Threads side by side take vectors side by side of one head.
#include <algorithm>

#include "cuda/rope.cuh"
#include "cuda/rows.cuh"

namespace dse::cuda {
namespace {

constexpr int kSumThreads = 64;  // of a block that adds up heads: small, since so is what there is to add up

// Calls f(sequence, head, token) for the heads of this thread: the grid's x is tokens, y sequences, z heads.
template <class F>
__device__ void each_head(const RopeShape& shape, const F& f) {
    const int64_t heads = static_cast<int64_t>(gridDim.z) * blockDim.y;
    for (int64_t sequence = blockIdx.y; sequence < shape.sequences; sequence += gridDim.y)
        for (int64_t token = blockIdx.x; token < shape.tokens; token += gridDim.x)
            for (int64_t head = static_cast<int64_t>(blockIdx.z) * blockDim.y + threadIdx.y;
                 head < shape.heads; head += heads)
                f(sequence, head, token);
}

// Calls f(column, left) for each vector of this thread, `left` columns being left from there on.
template <class F>
__device__ void each_vector(int64_t columns, const F& f) {
    for (int64_t c = threadIdx.x * kVectorLength; c < columns;
         c += static_cast<int64_t>(blockDim.x) * kVectorLength)
        f(c, columns - c);
}

// Bit for bit.
template <bool kVector, class T>
__device__ void copy_row(const T* from, int64_t columns, T* to) {
    each_vector(columns, [&](int64_t c, int64_t left) {
        if (kVector) {
#pragma unroll
            for (int i = 0; i < kVectorLength; i += 16 / static_cast<int>(sizeof(T)))
                store_sixteen(*reinterpret_cast<const uint4*>(from + c + i), to + c + i);
        } else {
#pragma unroll
            for (int i = 0; i < kVectorLength; ++i)
                if (i < left) to[c + i] = from[c + i];
        }
    });
}

// Turns each pair of `values` by its angle, or back.
template <bool kBack, bool kVector>
__device__ void turn(const float* rotation, int64_t left, float* values) {
    float angles[kVectorLength];
    load_part<kVector>(rotation, left, angles);
#pragma unroll
    for (int i = 0; i < kVectorLength; i += 2) {
        const float x0 = values[i], x1 = values[i + 1];
        const float cosine = angles[i], sine = kBack ? -angles[i + 1] : angles[i + 1];
        values[i] = x0 * cosine - x1 * sine;
        values[i + 1] = x0 * sine + x1 * cosine;
    }
}

// out may be x.
template <bool kBack, bool kVector, class T>
__device__ void turn_part(const T* x, const float* rotation, int64_t left, T* out) {
    float values[kVectorLength];
    load_part<kVector>(x, left, values);
    turn<kBack, kVector>(rotation, left, values);
    store_part<kVector>(values, left, out);
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kRowThreads)
    rope_heads_kernel(RopeShape shape, HeadRows q, HeadRows kv, HeadRows k_rope, HeadRows k) {
    each_head(shape, [&](int64_t sequence, int64_t head, int64_t token) {
        T* const key = row_at<T>(k, sequence, head, token);
        copy_row<kVector>(row_at<const T>(kv, sequence, head, token), shape.plain, key);
        T* const query = row_at<T>(q, sequence, head, token) + shape.plain;
        const T* const shared = row_at<const T>(k_rope, sequence, 0, token);
        const float* const rotation = shape.rotation + token * shape.rotated;
        each_vector(shape.rotated, [&](int64_t c, int64_t left) {
            turn_part<false, kVector>(query + c, rotation + c, left, query + c);
            turn_part<false, kVector>(shared + c, rotation + c, left, key + shape.plain + c);
        });
    });
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kRowThreads)
    rope_heads_backward_kernel(RopeShape shape, HeadRows grad_q, HeadRows grad_k, HeadRows grad_v,
                               HeadRows grad_kv) {
    each_head(shape, [&](int64_t sequence, int64_t head, int64_t token) {
        T* const out = row_at<T>(grad_kv, sequence, head, token);
        copy_row<kVector>(row_at<const T>(grad_k, sequence, head, token), shape.plain, out);
        copy_row<kVector>(row_at<const T>(grad_v, sequence, head, token), shape.values, out + shape.plain);
        T* const query = row_at<T>(grad_q, sequence, head, token) + shape.plain;
        const float* const rotation = shape.rotation + token * shape.rotated;
        each_vector(shape.rotated, [&](int64_t c, int64_t left) {
            turn_part<true, kVector>(query + c, rotation + c, left, query + c);
        });
    });
}

// The shared key's gradient: a thread adds up one vector over all heads.
template <class T, bool kVector>
__global__ void __launch_bounds__(kSumThreads)
    rope_sum_heads_kernel(RopeShape shape, HeadRows grad_k, HeadRows grad_k_rope) {
    for (int64_t sequence = blockIdx.y; sequence < shape.sequences; sequence += gridDim.y)
        each_row(shape.tokens, [&](int64_t token) {
            const T* const first = row_at<const T>(grad_k, sequence, 0, token) + shape.plain;
            T* const out = row_at<T>(grad_k_rope, sequence, 0, token);
            each_vector(shape.rotated, [&](int64_t c, int64_t left) {
                float sum[kVectorLength] = {};
#pragma unroll 4
                for (int64_t head = 0; head < shape.heads; ++head) {
                    float values[kVectorLength];
                    load_part<kVector>(first + head * grad_k.head_stride + c, left, values);
#pragma unroll
                    for (int i = 0; i < kVectorLength; ++i) sum[i] += values[i];
                }
#pragma unroll
                for (int i = 0; i < kVectorLength; ++i) {
                    T rounded;
                    round_to(sum[i], &rounded);
                    sum[i] = to_float(rounded);
                }
                turn<true, kVector>(shape.rotation + token * shape.rotated + c, left, sum);
                store_part<kVector>(sum, left, out + c);
            });
        });
}

// As many threads to a head as its longest part has vectors, and a block for the heads of one token.
struct HeadPlan {
    HeadPlan(const RopeShape& shape, int64_t longest) {
        int across = 1;
        while (across < kRowThreads && across * kVectorLength < longest) across *= 2;
        block = dim3(across, kRowThreads / across);
        grid = dim3(grid_size(shape.tokens, kMaxGridX), grid_size(shape.sequences, kMaxGridY),
                    grid_size(ceil_div(shape.heads, block.y), kMaxGridY));
    }
    dim3 grid, block;
};

// Whether the heads of all tokens begin at 16-byte boundaries.
template <class T>
bool is_vector(const HeadRows& x) {
    const int64_t strides = x.sequence_stride | x.head_stride | x.row_stride;
    return is_aligned(x.data, 16) && strides * static_cast<int64_t>(sizeof(T)) % 16 == 0;
}

bool is_vector(const RopeShape& shape) {
    return (shape.plain | shape.rotated) % kVectorLength == 0 && is_aligned(shape.rotation, 16);
}

}  // namespace

void rope_heads(const RopeShape& shape, const HeadRows& q, const HeadRows& kv, const HeadRows& k_rope,
                const HeadRows& k, cudaStream_t stream) {
    if (shape.sequences == 0 || shape.tokens == 0) return;
    const HeadPlan plan(shape, std::max(shape.plain, shape.rotated));
    with_type(shape.type, [&](auto zero) {
        using T = decltype(zero);
        const bool vector = is_vector(shape) && is_vector<T>(q) && is_vector<T>(kv) && is_vector<T>(k_rope) &&
                            is_vector<T>(k);
        const auto kernel = vector ? rope_heads_kernel<T, true> : rope_heads_kernel<T, false>;
        kernel<<<plan.grid, plan.block, 0, stream>>>(shape, q, kv, k_rope, k);
    });
}

void rope_heads_backward(const RopeShape& shape, const HeadRows& grad_q, const HeadRows& grad_k,
                         const HeadRows& grad_v, const HeadRows& grad_kv, const HeadRows& grad_k_rope,
                         cudaStream_t stream) {
    if (shape.sequences == 0 || shape.tokens == 0) return;
    with_type(shape.type, [&](auto zero) {
        using T = decltype(zero);
        const bool vector = is_vector(shape) && shape.values % kVectorLength == 0 && is_vector<T>(grad_q) &&
                            is_vector<T>(grad_k) && is_vector<T>(grad_v) && is_vector<T>(grad_kv) &&
                            is_vector<T>(grad_k_rope);
        if (shape.heads > 0) {
            const HeadPlan plan(shape, std::max({shape.plain, shape.rotated, shape.values}));
            const auto kernel =
                vector ? rope_heads_backward_kernel<T, true> : rope_heads_backward_kernel<T, false>;
            kernel<<<plan.grid, plan.block, 0, stream>>>(shape, grad_q, grad_k, grad_v, grad_kv);
        }
        if (shape.rotated > 0) {
            int across = 1;
            while (across < kSumThreads && across * kVectorLength < shape.rotated) across *= 2;
            const dim3 block(across, kSumThreads / across);
            const dim3 grid(grid_size(ceil_div(shape.tokens, block.y), kMaxGridX),
                            grid_size(shape.sequences, kMaxGridY));
            const auto kernel = vector ? rope_sum_heads_kernel<T, true> : rope_sum_heads_kernel<T, false>;
            kernel<<<grid, block, 0, stream>>>(shape, grad_k, grad_k_rope);
        }
    });
}

}  // namespace dse::cuda
