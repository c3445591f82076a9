// Bound by memory: with BF16 moments 12 bytes of state and gradient come in for an element and 8 go out; the
// root and the division, some fifty instructions, hide behind that.
#include "cuda/optimizer.cuh"
#include "cuda/rows.cuh"

namespace dse::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlockElements = 8 * kThreads * kVectorLength;
constexpr int kTensors = 64;  // of a launch: their table, of 44 bytes each, must stay below 4 KB

struct AdamwTable {
    AdamwConstants constants;
    int tensors;
    uint32_t last_block[kTensors];  // the one behind the blocks of each tensor
    int64_t count[kTensors];
    AdamwPointers at[kTensors];
};
static_assert(sizeof(AdamwTable) <= 4096);

template <bool kVector, class M, class V>
__device__ void adamw_part(const AdamwConstants& c, const AdamwPointers& at, int64_t begin, int64_t left) {
    float* const params = at.param + begin;
    M* const exp_avgs = static_cast<M*>(at.exp_avg) + begin;
    V* const exp_avg_sqs = static_cast<V*>(at.exp_avg_sq) + begin;
    float param[kVectorLength], grad[kVectorLength], m[kVectorLength], v[kVectorLength];
    load_part<kVector>(params, left, param);
    load_part<kVector>(at.grad + begin, left, grad);
    load_part<kVector>(exp_avgs, left, m);
    load_part<kVector>(exp_avg_sqs, left, v);
#pragma unroll
    for (int i = 0; i < kVectorLength; ++i) {
        const float g = grad[i] * c.grad_scale;
        m[i] = m[i] * c.beta1 + g * c.one_minus_beta1;
        v[i] = v[i] * c.beta2 + g * c.one_minus_beta2 * g;
        param[i] = param[i] * c.decay - divide(m[i] * c.rate, __fsqrt_rn(v[i]) * c.root_factor + c.eps);
    }
    store_part<kVector>(param, left, params);
    store_part<kVector>(m, left, exp_avgs);
    store_part<kVector>(v, left, exp_avg_sqs);
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
    for (int64_t i = threadIdx.x * kVectorLength; i < end; i += kThreads * kVectorLength) {
        if (aligned && end - i >= kVectorLength)
            adamw_part<true, M, V>(table.constants, at, begin + i, end - i);
        else
            adamw_part<false, M, V>(table.constants, at, begin + i, end - i);
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
