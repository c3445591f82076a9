// A persistent FP8 gemm on clusters of two CTAs, and ways to get it wrong: B comes by multicast, half from
// each CTA; two consumer warpgroups a CTA; BF16 results are staged in shared memory and stored by TMA. Each
// fault is a kernel of its own, cluster_<fault>.
//
// a [M, K], b [N, K] E4M3 and out [M, N] BF16 by tensor maps (boxes of 128 x 128, 32 x 128, 64 x 64, the last
// without swizzle); sa [M, K/128], sb [N/128, K/128]. 384 threads: warps 0..3 load, 4..7 and 8..11 multiply.
#include <cuda_bf16.h>

#include "faults.cuh"
#include "hopper.cuh"

namespace {

using namespace hopper;

constexpr int kRows = 128, kColumns = 64, kDepth = 128, kStages = 3;
constexpr uint32_t kBytesA = kRows * kDepth, kBytesB = kColumns * kDepth, kBytesOut = kRows * kColumns * 2;

// clang-format off
#define CLUSTER_FAULTS(X) \
    X(none) X(no_proxy_fence) X(no_sync_before_store) X(no_wait_read) X(no_sync_after_wait_read) \
    X(no_final_wait) X(no_cluster_sync_at_start) X(no_cluster_sync_at_end) X(empty_arrive_local) \
    X(multicast_mask) X(tx_without_peer) X(same_half_twice) X(barrier_of_96) \
    X(arrive_with_cta_scope) X(registers_above_pool) X(store_not_committed) X(multicast_outside) \
    X(arrive_twice) X(wait_without_arrive) X(mapa_outside)
// clang-format on

DEFINE_FAULTS(Fault, CLUSTER_FAULTS);
using enum Fault;

struct Layout {
    uint32_t a, b, out, full, empty;
};

template <Fault kFault>
__device__ void produce(const CUtensorMap* ta, const CUtensorMap* tb, const Layout& at, uint32_t rank,
                        int tiles, int tiles_n, int blocks) {
    int step = 0;
    for (int tile = blockIdx.x / 2; tile < tiles; tile += gridDim.x / 2) {
        const int m0 = (tile / tiles_n * 2 + rank) * kRows, n0 = tile % tiles_n * kColumns;
        for (int kb = 0; kb < blocks; ++kb, ++step) {
            const int s = step % kStages;
            wait(at.empty + 8 * s, step / kStages & 1 ^ 1);
            arrive_expect(at.full + 8 * s, kBytesA + (kFault == tx_without_peer ? kBytesB / 2 : kBytesB));
            load_2d(at.a + s * kBytesA, ta, at.full + 8 * s, kb * kDepth, m0);
            const int half = kFault == same_half_twice ? 0 : rank * (kColumns / 2);
            const uint16_t ctas = kFault == multicast_mask ? 1 : kFault == multicast_outside ? 7 : 3;
            load_2d_multicast(at.b + s * kBytesB + rank * (kBytesB / 2), tb, at.full + 8 * s, kb * kDepth,
                              n0 + half, ctas);
        }
    }
}

template <Fault kFault>
__device__ void consume(const CUtensorMap* tout, const Layout& at, const float* sa, const float* sb,
                        uint32_t rank, int tiles, int tiles_n, int blocks) {
    const int group = threadIdx.x / 128 - 1, thread = threadIdx.x % 128, warp = thread / 32,
              lane = thread % 32;
    const uint32_t staged = at.out + group * (kBytesOut / 2);
    int step = 0;
    for (int tile = blockIdx.x / 2; tile < tiles; tile += gridDim.x / 2) {
        const int m0 = (tile / tiles_n * 2 + rank) * kRows + group * 64, n0 = tile % tiles_n * kColumns;
        const int row = warp * 16 + lane / 4;
        float sum[32], part[32];
#pragma unroll
        for (int i = 0; i < 32; ++i) sum[i] = 0.f;
        for (int kb = 0; kb < blocks; ++kb, ++step) {
            const int s = step % kStages;
            const float scale_b = sb[n0 / 128 * blocks + kb];
            const float scale0 = sa[(m0 + row) * blocks + kb] * scale_b;
            const float scale1 = sa[(m0 + row + 8) * blocks + kb] * scale_b;
            wait(at.full + 8 * s, step / kStages & 1);
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < 4; ++k)
                wgmma_e4m3(part, descriptor(at.a + s * kBytesA + group * 64 * kDepth + k * 32),
                           descriptor(at.b + s * kBytesB + k * 32), k != 0);
            wgmma_commit();
            wgmma_wait();
            // One arrival a warp at each CTA of the cluster, which loads into both.
            if (kFault == empty_arrive_local) {
                if (lane == 0) arrive(at.empty + 8 * s);
            } else if (lane < 2) {
                const uint32_t peer = in_cta(at.empty + 8 * s, kFault == mapa_outside ? lane + 1 : lane);
                if (kFault == arrive_with_cta_scope)
                    arrive_remote_cta_scope(peer);
                else
                    arrive_remote(peer);
            }
#pragma unroll
            for (int i = 0; i < 32; ++i) sum[i] += (i / 2 % 2 ? scale1 : scale0) * part[i];
        }
        if (thread == 0 && kFault != no_wait_read) wait_stores_read();
        if (kFault != no_sync_after_wait_read) asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
#pragma unroll
        for (int i = 0; i < 32; i += 2) {
            const int column = i / 4 * 8 + lane % 4 * 2;
            const __nv_bfloat162 pair = __floats2bfloat162_rn(sum[i], sum[i + 1]);
            asm volatile("st.shared.b32 [%0], %1;" ::"r"(staged + (row + i / 2 % 2 * 8) * 128 + column * 2),
                         "r"(*reinterpret_cast<const uint32_t*>(&pair))
                         : "memory");
        }
        if (kFault != no_proxy_fence) fence_async();
        if (kFault == barrier_of_96)
            asm volatile("bar.sync %0, 96;" ::"r"(group + 1) : "memory");
        else if (kFault != no_sync_before_store)
            asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
        if (thread == 0) {
            store_2d(tout, staged, n0, m0);
            if (kFault != store_not_committed) commit();
        }
    }
    if (thread == 0 && kFault != no_final_wait) wait_stores();
}

template <Fault kFault>
__device__ void gemm(const CUtensorMap* ta, const CUtensorMap* tb, const CUtensorMap* tout, const float* sa,
                     const float* sb, int m, int n, int k) {
    extern __shared__ uint8_t memory[];
    Layout at;
    at.a = shared(memory) + 1023 & ~1023u;
    at.b = at.a + kStages * kBytesA;
    at.out = at.b + kStages * kBytesB;
    at.full = at.out + kBytesOut;
    at.empty = at.full + 8 * kStages;
    const uint32_t rank = cluster_rank();
    const int blocks = k / kDepth, tiles_n = n / kColumns, tiles = m / (2 * kRows) * tiles_n;
    if (threadIdx.x == 0) {
        for (int s = 0; s < kStages; ++s) {
            init(at.full + 8 * s, 1);
            init(at.empty + 8 * s, kFault == empty_arrive_local ? 8 : 16);
        }
        fence_init();
    }
    if (kFault == no_cluster_sync_at_start) {
        __syncthreads();
    } else if (kFault == arrive_twice) {
        cluster_arrive();
        cluster_arrive();
        cluster_wait();
    } else if (kFault == wait_without_arrive) {
        cluster_wait();
    } else {
        cluster_sync();
    }
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 0) produce<kFault>(ta, tb, at, rank, tiles, tiles_n, blocks);
        __syncwarp();
    } else {
        if (kFault == registers_above_pool)
            asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        else
            asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        consume<kFault>(tout, at, sa, sb, rank, tiles, tiles_n, blocks);
        __syncwarp();
    }
    if (kFault != no_cluster_sync_at_end) cluster_sync();
}

}  // namespace

#define KERNEL(name)                                                                                       \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1) cluster_##name(         \
        const __grid_constant__ CUtensorMap ta, const __grid_constant__ CUtensorMap tb,                    \
        const __grid_constant__ CUtensorMap tout, const float* sa, const float* sb, int m, int n, int k) { \
        gemm<name>(&ta, &tb, &tout, sa, sb, m, n, k);                                                      \
    }
CLUSTER_FAULTS(KERNEL)
