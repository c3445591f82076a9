// FP8 block-scaled gemm, out = (a sa) (b sb)', and ways to get it wrong: TMA loads into a ring of stages,
// mbarriers, one consumer warpgroup with wgmma, promotion every 128 of K. Each fault is a kernel of its own,
// gemm_<fault>.
//
// a [M, K], b [N, K] E4M3 by tensor maps with boxes of 64 rows; sa [M, K/128], sb [N/128, K/128]; out [M, N]
// FP32. Grid (N/64, M/64), 256 threads: warps 0..3 load, warps 4..7 multiply.
#include "faults.cuh"
#include "hopper.cuh"

namespace {

using namespace hopper;

constexpr int kTile = 64, kDepth = 128, kStages = 3;
constexpr uint32_t kTileBytes = kTile * kDepth;

// clang-format off
#define GEMM_FAULTS(X) \
    X(none) X(wrong_swizzle) X(no_full_wait) X(producer_parity) X(no_empty_wait) \
    X(load_out_of_bounds) X(store_shared_out_of_bounds) X(tx_too_large) X(no_wgmma_wait) \
    X(early_empty_arrive) X(no_sync_after_init) X(consumer_parity_stuck) \
    X(consumer_parity_inverted) X(empty_count_too_small) X(empty_count_too_large) \
    X(tx_too_small) X(no_wgmma_fence) X(wgmma_fence_once) X(tx_of_larger_box) \
    X(group_stride_512) X(k_advance_64) X(swapped_coordinates) X(store_row_out_of_bounds) \
    X(shared_not_aligned) X(scale_out_of_bounds) X(stages_alias) X(barrier_overwritten) \
    X(barrier_in_one_lane) X(no_init_fence) X(relaxed_arrive) X(one_warp_skips) \
    X(map_not_grid_constant) X(base_offset) X(exit_before_wait)
// clang-format on

DEFINE_FAULTS(Fault, GEMM_FAULTS);
using enum Fault;

__device__ __forceinline__ void start(uint32_t full, uint32_t empty, Fault fault) {
    for (int s = 0; s < kStages; ++s) {
        init(full + 8 * s, 1);
        init(empty + 8 * s, fault == empty_count_too_small ? 1 : fault == empty_count_too_large ? 5 : 4);
    }
    if (fault != no_init_fence) fence_init();
}

template <Fault kFault>
__device__ void produce(const CUtensorMap* ta, const CUtensorMap* tb, uint32_t sa, uint32_t sb, uint32_t full,
                        uint32_t empty, int blocks, int m0, int n0) {
    for (int kb = 0; kb < blocks; ++kb) {
        const int s = kb % kStages;
        const uint32_t parity = kb / kStages & 1;
        if (kFault != no_empty_wait) wait(empty + 8 * s, kFault == producer_parity ? parity : parity ^ 1);
        uint32_t bytes = 2 * kTileBytes;
        if (kFault == tx_too_large) bytes += 16;
        if (kFault == tx_too_small) bytes -= kTileBytes;
        if (kFault == tx_of_larger_box) bytes += kTileBytes;
        arrive_expect(full + 8 * s, bytes);
        const int stage = kFault == load_out_of_bounds && kb == 3 ? s + 100 : s;
        if (kFault == swapped_coordinates)
            load_2d(sa + stage * kTileBytes, ta, full + 8 * s, m0, kb * kDepth);
        else
            load_2d(sa + stage * kTileBytes, ta, full + 8 * s, kb * kDepth, m0);
        load_2d(sb + s * kTileBytes, tb, full + 8 * s, kb * kDepth, n0);
    }
}

template <Fault kFault>
__device__ void consume(uint32_t sa, uint32_t sb, uint32_t full, uint32_t empty, const float* scale_a,
                        const float* scale_b, float* out, int n, int blocks, int m0, int n0) {
    const int thread = threadIdx.x - 128, warp = thread / 32, lane = thread % 32;
    const int row = m0 + warp * 16 + lane / 4;
    float sum[32], part[32];
#pragma unroll
    for (int i = 0; i < 32; ++i) sum[i] = 0.f;
    if (kFault == wgmma_fence_once) wgmma_fence();
    for (int kb = 0; kb < blocks; ++kb) {
        const int s = kb % kStages;
        uint32_t parity = kb / kStages & 1;
        if (kFault == consumer_parity_stuck) parity = 0;
        if (kFault == consumer_parity_inverted) parity ^= 1;
        const int beyond = kFault == scale_out_of_bounds ? 64 * blocks : 0;
        const float b_scale = scale_b[n0 / 128 * blocks + kb];
        const float scale0 = scale_a[row * blocks + kb + beyond] * b_scale;
        const float scale1 = scale_a[(row + 8) * blocks + kb] * b_scale;
        if (kFault != no_full_wait) wait(full + 8 * s, parity);
        if (kFault != no_wgmma_fence && kFault != wgmma_fence_once) wgmma_fence();
        const uint32_t stride = kFault == group_stride_512 ? 512 : 1024,
                       step = kFault == k_advance_64 ? 64 : 32;
        const uint64_t mode = kFault == wrong_swizzle ? 2 : 1;
        const uint64_t extra = kFault == base_offset ? uint64_t{1} << 49 : 0;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            if (kFault == one_warp_skips && warp == 3 && k == 3) continue;
            wgmma_e4m3(part, descriptor(sa + s * kTileBytes + k * step, stride, mode) | extra,
                       descriptor(sb + s * kTileBytes + k * 32), k != 0);
        }
        wgmma_commit();
        if (kFault == early_empty_arrive && lane == 0) arrive(empty + 8 * s);
        if (kFault == exit_before_wait && kb == blocks - 1) return;
        if (kFault != no_wgmma_wait) wgmma_wait();
        if (kFault == barrier_overwritten && kb == 0 && thread == 0)
            asm volatile("st.shared.b32 [%0], %1;" ::"r"(full), "r"(7) : "memory");
        if (kFault == relaxed_arrive) {
            if (lane == 0) arrive_relaxed(empty + 8 * s);
        } else if (kFault != early_empty_arrive && lane == 0) {
            arrive(empty + 8 * s);
        }
#pragma unroll
        for (int i = 0; i < 32; ++i) sum[i] += (i / 2 % 2 ? scale1 : scale0) * part[i];
    }
    if (kFault == store_shared_out_of_bounds)
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(sa + 200 * 1024), "r"(1) : "memory");
#pragma unroll
    for (int i = 0; i < 32; i += 2) {
        const int r = row + i / 2 % 2 * 8 + (kFault == store_row_out_of_bounds ? 1 : 0);
        const int column = n0 + i / 4 * 8 + lane % 4 * 2;
        *reinterpret_cast<float2*>(out + r * n + column) = make_float2(sum[i], sum[i + 1]);
    }
}

template <Fault kFault>
__device__ void gemm(const CUtensorMap* ta, const CUtensorMap* tb, const float* scale_a, const float* scale_b,
                     float* out, int n, int k) {
    extern __shared__ uint8_t memory[];
    const uint32_t base = shared(memory) + 1023 & ~1023u;
    const uint32_t sa = kFault == shared_not_aligned ? base + 128 : base;
    const uint32_t sb = sa + (kFault == stages_alias ? kStages - 1 : kStages) * kTileBytes;
    const uint32_t full = base + 2 * kStages * kTileBytes + 512, empty = full + 8 * kStages;
    const int blocks = k / kDepth, m0 = blockIdx.y * kTile, n0 = blockIdx.x * kTile;
    if (threadIdx.x == 0) start(full, empty, kFault);
    if (kFault != no_sync_after_init) __syncthreads();
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 0) {
            if (kFault == barrier_in_one_lane) asm volatile("bar.sync 1, 128;" ::: "memory");
            produce<kFault>(ta, tb, sa, sb, full, empty, blocks, m0, n0);
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        consume<kFault>(sa, sb, full, empty, scale_a, scale_b, out, n, blocks, m0, n0);
    }
}

}  // namespace

#define KERNEL(name)                                                                                \
    extern "C" __global__ void __launch_bounds__(256, 1)                                            \
        gemm_##name(const __grid_constant__ CUtensorMap ta, const __grid_constant__ CUtensorMap tb, \
                    const float* sa, const float* sb, float* out, int n, int k) {                   \
        if constexpr (name == map_not_grid_constant) {                                              \
            CUtensorMap copy = ta;                                                                  \
            asm volatile("" ::"l"(&copy) : "memory");                                               \
            gemm<name>(&copy, &tb, sa, sb, out, n, k);                                              \
        } else {                                                                                    \
            gemm<name>(&ta, &tb, sa, sb, out, n, k);                                                \
        }                                                                                           \
    }
GEMM_FAULTS(KERNEL)
