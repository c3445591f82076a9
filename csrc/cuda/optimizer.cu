// Bound by memory: with BF16 moments 12 bytes of state and gradient come in for an element and 8 go out; the
// root and the division, some fifty instructions, hide behind that.
#include "cuda/optimizer.cuh"
#include "cuda/rows.cuh"

namespace dse::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlockElements = 64 * kThreads;
constexpr int kTensors = 64;  // of a launch: their table, of 44 bytes each, must stay below 4 KB

struct AdamwTable {
    AdamwConstants constants;
    int tensors;
    uint32_t last_block[kTensors];  // the one behind the blocks of each tensor
    int64_t count[kTensors];
    AdamwPointers at[kTensors];
};
static_assert(sizeof(AdamwTable) <= 4096);

// Elements of a thread at a time: 16 bytes of FP32, so that the threads of a warp leave no gaps between them.
constexpr int kQuad = 4;

__device__ void load_quad(const float* p, float* out) {
    const float4 x = *reinterpret_cast<const float4*>(p);
    out[0] = x.x, out[1] = x.y, out[2] = x.z, out[3] = x.w;
}
__device__ void load_quad(const Bf16* p, float* out) {
    const uint2 x = *reinterpret_cast<const uint2*>(p);
    out[0] = bits_float(x.x << 16), out[1] = bits_float(x.x & 0xffff0000u);
    out[2] = bits_float(x.y << 16), out[3] = bits_float(x.y & 0xffff0000u);
}
__device__ void store_quad(const float* x, float* p) {
    __stwb(reinterpret_cast<float4*>(p), make_float4(x[0], x[1], x[2], x[3]));
}
__device__ void store_quad(const float* x, Bf16* p) {
    const auto pair = [&](int i) {
        return float_to_bf16(x[i]) | static_cast<uint32_t>(float_to_bf16(x[i + 1])) << 16;
    };
    __stwb(reinterpret_cast<uint2*>(p), make_uint2(pair(0), pair(2)));
}

// kQuad elements from p on, all aligned, or fewer that may lie anywhere.
template <bool kWhole, class T>
__device__ void load(const T* p, int64_t count, float* out) {
    if constexpr (kWhole) {
        load_quad(p, out);
    } else {
#pragma unroll
        for (int i = 0; i < kQuad; ++i) out[i] = i < count ? to_float(p[i]) : 0.0f;
    }
}
template <bool kWhole, class T>
__device__ void store(const float* x, int64_t count, T* p) {
    if constexpr (kWhole) {
        store_quad(x, p);
    } else {
#pragma unroll
        for (int i = 0; i < kQuad; ++i)
            if (i < count) round_to(x[i], p + i);
    }
}

template <bool kWhole, class M, class V>
__device__ void adamw_quad(const AdamwConstants& c, const AdamwPointers& at, int64_t begin, int64_t count) {
    float* const params = at.param + begin;
    M* const exp_avgs = static_cast<M*>(at.exp_avg) + begin;
    V* const exp_avg_sqs = static_cast<V*>(at.exp_avg_sq) + begin;
    float param[kQuad], grad[kQuad], m[kQuad], v[kQuad];
    load<kWhole>(params, count, param);
    load<kWhole>(at.grad + begin, count, grad);
    load<kWhole>(exp_avgs, count, m);
    load<kWhole>(exp_avg_sqs, count, v);
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
        const float g = grad[i] * c.grad_scale;
        m[i] = m[i] * c.beta1 + g * c.one_minus_beta1;
        v[i] = v[i] * c.beta2 + g * c.one_minus_beta2 * g;
        param[i] = param[i] * c.decay - divide(m[i] * c.rate, __fsqrt_rn(v[i]) * c.root_factor + c.eps);
    }
    store<kWhole>(param, count, params);
    store<kWhole>(m, count, exp_avgs);
    store<kWhole>(v, count, exp_avg_sqs);
}

__device__ bool all_aligned(const AdamwPointers& at) {
    return is_aligned(at.param, 16) && is_aligned(at.grad, 16) && is_aligned(at.exp_avg, 16) &&
           is_aligned(at.exp_avg_sq, 16);
}

// Each block takes kBlockElements of one tensor, or what is left of it.
template <class M, class V>
__global__ void __launch_bounds__(kThreads) adamw_kernel(const __grid_constant__ AdamwTable table) {
    int tensor = 0;  // the first whose blocks end behind this one
    for (int size = kTensors / 2; size > 0; size /= 2)
        if (tensor + size <= table.tensors - 1 && table.last_block[tensor + size - 1] <= blockIdx.x)
            tensor += size;
    const uint32_t first_block = tensor == 0 ? 0 : table.last_block[tensor - 1];
    const AdamwPointers at = table.at[tensor];
    const int64_t begin = (blockIdx.x - first_block) * kBlockElements;
    const int64_t rest = table.count[tensor] - begin, end = rest < kBlockElements ? rest : kBlockElements;
    const bool aligned = all_aligned(at);
    for (int64_t i = threadIdx.x * kQuad; i < end; i += kThreads * kQuad) {
        if (aligned && end - i >= kQuad)
            adamw_quad<true, M, V>(table.constants, at, begin + i, kQuad);
        else
            adamw_quad<false, M, V>(table.constants, at, begin + i, end - i);
    }
}

template <class M, class V>
void launch(const AdamwTable& table, cudaStream_t stream) {
    if (table.tensors == 0) return;
    adamw_kernel<M, V><<<table.last_block[table.tensors - 1], kThreads, 0, stream>>>(table);
}

// The tensors whose moments are of one kind, as many at a time as a table holds.
template <class M, class V>
void step_kind(const std::vector<AdamwTensor>& tensors, const AdamwConstants& constants, bool bf16_m,
               bool bf16_v, cudaStream_t stream) {
    AdamwTable table{};
    table.constants = constants;
    int64_t blocks = 0;
    for (const AdamwTensor& x : tensors) {
        if (x.count == 0 || x.bf16_exp_avg != bf16_m || x.bf16_exp_avg_sq != bf16_v) continue;
        const int64_t more = ceil_div(x.count, kBlockElements);
        if (table.tensors == kTensors || blocks + more > kMaxGridX) {
            launch<M, V>(table, stream);
            table.tensors = 0;
            blocks = 0;
        }
        blocks += more;
        table.last_block[table.tensors] = static_cast<uint32_t>(blocks);
        table.count[table.tensors] = x.count;
        table.at[table.tensors++] = x.at;
    }
    launch<M, V>(table, stream);
}

}  // namespace

void adamw_step(const std::vector<AdamwTensor>& tensors, const AdamwConstants& constants,
                cudaStream_t stream) {
    step_kind<float, float>(tensors, constants, false, false, stream);
    step_kind<float, Bf16>(tensors, constants, false, true, stream);
    step_kind<Bf16, float>(tensors, constants, true, false, stream);
    step_kind<Bf16, Bf16>(tensors, constants, true, true, stream);
}

}  // namespace dse::cuda
