// The gemm on Hopper: one persistent CTA an SM, whose warps have roles.
//
//   warp 0        copies codes: device memory -> ring of stages in shared memory (TMA)
//   warps 1..3    copy scales the same way, with ordinary loads: their strides may be anything
//   warps 4..11   multiply, in one or two warpgroups (wgmma), and write the result
//
// A stage holds 128 codes of depth of each row and column of the tile and their scales. Its barrier `full`
// completes a phase once codes and scales are there; `empty` once all multiplying warps have read them. While
// one warpgroup adds its scaled sums (promotes), the tensor core multiplies for the other; or, where one has
// the whole tile, the next stage for the same.
//
// The CTAs of a cluster (ClusterShape) whose tiles lie side by side share their rows of A: each copies an
// equal part of them, to all. So do those with one above the other and their columns of B. So a stage is
// empty once the multiplying warps of all CTAs have read it, since each may write into the others'. The tiles
// of a cluster belong to one product and group. One beyond the last row or column multiplies like the others,
// as they need its part of A or B, and stores nothing.
//
// All roles walk the same tiles in the same order: the cluster's index, then the number of clusters further,
// and so on.
#pragma once
#include "cuda/convert.cuh"
#include "cuda/gemm_store.cuh"
#include "cuda/hopper/cluster.cuh"
#include "cuda/hopper/gemm_tile.h"
#include "cuda/hopper/matrix_descriptor.cuh"
#include "cuda/hopper/mbarrier.cuh"
#include "cuda/hopper/registers.cuh"
#include "cuda/hopper/tma.cuh"
#include "cuda/hopper/wgmma.cuh"

namespace dse::cuda::hopper {

struct Arguments {
    CUtensorMap a, b, out;  // `out` is used if out_by_copy
    GemmArguments gemm;     // its tiles are those of a cluster together
    int tiles;              // of clusters
    int ctas;               // of a cluster
    ClusterShape cluster;
    bool out_by_copy;
};

// Addresses in shared memory.
template <class T>
struct Ring {
    uint32_t base;

    static constexpr uint32_t kOut = T::kStages * T::kCodeBytes;
    static constexpr uint32_t kScales = kOut + T::kWarps * T::kOutBytes;
    static constexpr uint32_t kBarriers = kScales + T::kStages * T::kScaleBytes;

    __device__ explicit Ring(const void* memory)
        : base((shared_address(memory) + kSwizzleBytes - 1) / kSwizzleBytes * kSwizzleBytes) {}

    __device__ uint32_t a(int stage) const { return base + stage * T::kCodeBytes; }
    __device__ uint32_t b(int stage) const { return a(stage) + T::kABytes; }
    __device__ uint32_t out(int warp) const { return base + kOut + warp * T::kOutBytes; }
    __device__ uint32_t scales(int stage) const { return base + kScales + stage * T::kScaleBytes; }
    __device__ uint32_t full(int stage) const { return base + kBarriers + stage * 16; }
    __device__ uint32_t empty(int stage) const { return full(stage) + 8; }
};

// At a stage's barrier `full`: the copier of codes and the lane that speaks for a warp of scales. At `empty`
// the warps that multiply, of each CTA of the cluster.
inline constexpr int kFullArrivals = 2;

__device__ inline void store_shared(uint32_t address, float x) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(x) : "memory");
}
__device__ inline float load_shared(uint32_t address) {
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(address) : "memory");
    return x;
}
__device__ inline float2 load_shared_pair(uint32_t address) {
    float2 x;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(address) : "memory");
    return x;
}

// Where this CTA's tile lies among those of its cluster.
template <class T>
struct ClusterPlace {
    int row = 0, column = cluster_rank();

    __device__ explicit ClusterPlace(ClusterShape cluster) {
        if (!T::kSharesColumns) return;
        row = column / cluster.columns;
        column %= cluster.columns;
    }
};

template <class T>
__device__ inline int cluster_rows(const Arguments& args) {
    return T::kSharesColumns ? args.cluster.rows : 1;
}

// The rows of a cluster's tiles together, and the columns of the first.
template <class T, GemmGroups kGroups>
__device__ inline GemmPlace find_cluster(const Arguments& args, uint32_t index) {
    return cluster_rows<T>(args) == 1 ? find_place<T::kM, T::kN>(args.gemm, kGroups, index)
                                      : find_place<2 * T::kM, T::kN>(args.gemm, kGroups, index);
}

// A GemmPlace in half the registers: sizes are below 2^31, else there would be no tensor maps.
struct Work {
    int row, row_end, column, column_end;
    int k, blocks;  // first code of depth, stages
    int b_group, product;
};

// Calls role(work) for each tile of this CTA that changes the result, or whose neighbours in the cluster do;
// all lanes of a warp together.
template <class T, GemmGroups kGroups, class Role>
__device__ inline void for_each_tile(const Arguments& args, const Role& role) {
    const ClusterPlace<T> mine(args.cluster);
    const int clusters = num_clusters();
    for (int index = cluster_index(); index < args.tiles; index += clusters) {
        const GemmPlace place = find_cluster<T, kGroups>(args, index);
        if (!has_work(args.gemm, place)) continue;
        const auto number = [](int64_t x) { return static_cast<int>(x); };
        const int column = number(place.columns.start) * args.cluster.columns + mine.column * T::kN;
        role(Work{number(place.rows.start) + mine.row * T::kM, number(place.rows.end), column,
                  min(column + T::kN, number(args.gemm.all.n)), number(place.depth.start),
                  number(num_tiles(place.depth.end - place.depth.start)), number(place.b_group),
                  number(place.product)});
    }
}

// Rows beyond the tile's last are copied as well, and multiply to results that nobody stores.
template <class T, GemmGroups kGroups>
__device__ inline void copy_codes(const Arguments& args, const Ring<T>& ring) {
    const bool leads = threadIdx.x % kWarpSize == 0;
    // This CTA's part of the rows that CTAs beside each other share, and of the columns that two below each
    // other do; which CTAs they are.
    const ClusterPlace<T> mine(args.cluster);
    const int rows = cluster_rows<T>(args), columns = args.cluster.columns;
    const int a_first = mine.column * (T::kM / columns), b_first = mine.row * (T::kN / rows);
    const int beside = ((1 << columns) - 1) << mine.row * columns;
    const int below = (1 | 1 << columns) << mine.column;
    RingPosition<T::kStages> at;
    for_each_tile<T, kGroups>(args, [&](const Work& work) {
        for (int block = 0; block < work.blocks; ++block, at.advance()) {
            if (!leads) continue;
            const int k = work.k + block * kDepth;
            wait(ring.empty(at.stage), at.parity ^ 1);
            arrive_expecting(ring.full(at.stage), T::kCodeBytes);
            const uint32_t a = ring.a(at.stage) + a_first * kDepth, b = ring.b(at.stage) + b_first * kDepth;
            if (args.cluster.columns == 1)
                load_box(a, &args.a, ring.full(at.stage), k, work.row, 0);
            else
                load_box_to(beside, a, &args.a, ring.full(at.stage), k, work.row + a_first, 0);
            if (cluster_rows<T>(args) == 1)
                load_box(b, &args.b, ring.full(at.stage), k, work.column, work.b_group);
            else
                load_box_to(below, b, &args.b, ring.full(at.stage), k, work.column + b_first, work.b_group);
        }
        __syncwarp();
    });
}

// Each of three warps copies every third stage, so that the loads of three are under way; they are issued
// before the stage is free.
template <class T, GemmGroups kGroups, bool kBTiles>
__device__ inline void copy_scales(const Arguments& args, const Ring<T>& ring, int turn) {
    constexpr int kBStep = kBTiles ? 1 : T::kScaleColumns;  // columns from one scale to the next
    constexpr int kBScales = T::kN / kBStep;
    constexpr int kARows = T::kM / kWarpSize, kBRows = (kBScales + kWarpSize - 1) / kWarpSize;
    const GemmOperand &a = args.gemm.all.a, &b = args.gemm.all.b;
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    RingPosition<T::kStages> at;
    for_each_tile<T, kGroups>(args, [&](const Work& work) {
        const float* a_scales = scales_at(a, work.row + lane, work.k);
        const float* b_scales = scales_at(b, work.column + lane * kBStep, work.k) +
                                work.b_group * args.gemm.b_scales_group_stride;
        const int rows = work.row_end - work.row - lane;
        const int columns = work.column_end - work.column - lane * kBStep;
        for (int block = 0; block < work.blocks; ++block, at.advance()) {
            turn = turn == 0 ? 2 : turn - 1;
            if (turn != 0) continue;
            float of_a[kARows], of_b[kBRows];
            const float* from = a_scales + block * a.scale_k_stride;
#pragma unroll
            for (int i = 0; i < kARows; ++i, from += kWarpSize * a.scale_row_stride)
                of_a[i] = i * kWarpSize < rows ? *from : 0;
            from = b_scales + block * b.scale_k_stride;
#pragma unroll
            for (int i = 0; i < kBRows; ++i, from += kWarpSize * b.scale_row_stride)
                of_b[i] = i * kWarpSize < columns ? *from : 0;
            wait(ring.empty(at.stage), at.parity ^ 1);
            const uint32_t scales = ring.scales(at.stage);
#pragma unroll
            for (int i = 0; i < kARows; ++i) store_shared(scales + (i * kWarpSize + lane) * 4, of_a[i]);
#pragma unroll
            for (int i = 0; i < kBRows; ++i)
                if (kBScales % kWarpSize == 0 || i * kWarpSize + lane < kBScales)
                    store_shared(scales + (T::kM + i * kWarpSize + lane) * 4, of_b[i]);
            __syncwarp();
            if (lane == 0) arrive(ring.full(at.stage));
        }
    });
}

// Where a thread's sums lie in the tile (wgmma.cuh): rows `row` and row + 8 of each wave of 64 rows, columns
// `column` + 8 * j and the next. What is made of it is made anew where it is needed, hence `volatile`:
// registers are full of sums.
template <class T>
struct Share {
    int warp, lane, row, column, group_row;

    __device__ Share() {
        int thread;
        asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
        const int group = thread / 128 - 1;
        warp = thread / kWarpSize - 4;
        lane = thread % kWarpSize;
        group_row = group * T::kWaves * 64;
        row = group_row + warp % 4 * 16 + lane / 4;
        column = lane % 4 * 2;
    }
};

// The scales of a thread's sums in one wave of a stage: of rows `row` and row + 8, and of its columns.
template <class T, bool kBTiles>
struct Scales {
    static constexpr int kColumns = kBTiles ? 8 : T::kScaleColumns;  // from one load to the next
    float low, high;
    float2 b[T::kN / kColumns];

    __device__ Scales(const Ring<T>& ring, int stage, const Share<T>& share, int wave) {
        const uint32_t of_a = ring.scales(stage) + (share.row + wave * 64) * 4;
        const uint32_t of_b = ring.scales(stage) + (T::kM + (kBTiles ? share.column : 0)) * 4;
        low = load_shared(of_a), high = load_shared(of_a + 8 * 4);
#pragma unroll
        for (int i = 0; i < T::kN / kColumns; ++i) {
            if (kBTiles)
                b[i] = load_shared_pair(of_b + i * kColumns * 4);
            else
                b[i].x = b[i].y = load_shared(of_b + i * 4);
        }
    }
};

// sums += partial, scaled; both scales of a product are multiplied first.
template <class T, bool kBTiles>
__device__ inline void promote(float (&sums)[T::kSums], const float (&partial)[T::kSums],
                               const Scales<T, kBTiles>& scales) {
#pragma unroll
    for (int i = 0; i < T::kSums; i += 4) {
        const float2 b = scales.b[i * 2 / scales.kColumns];
        sums[i] = __fmaf_rn(partial[i], scales.low * b.x, sums[i]);
        sums[i + 1] = __fmaf_rn(partial[i + 1], scales.low * b.y, sums[i + 1]);
        sums[i + 2] = __fmaf_rn(partial[i + 2], scales.high * b.x, sums[i + 2]);
        sums[i + 3] = __fmaf_rn(partial[i + 3], scales.high * b.y, sums[i + 3]);
    }
}

// Starts the products of a stage's 64 rows from `first_row` on.
template <class T>
__device__ inline void start_products(const Ring<T>& ring, int stage, int first_row,
                                      float (&partial)[T::kSums]) {
    const uint32_t a = ring.a(stage) + first_row * kDepth, b = ring.b(stage);
    begin_products(partial);
    multiply<false>(partial, matrix_descriptor(a, 0), matrix_descriptor(b, 0));
#pragma unroll
    for (int k = 32; k < kDepth; k += 32)
        multiply<true>(partial, matrix_descriptor(a, k), matrix_descriptor(b, k));
    commit_products(partial);
}

template <class T, bool kBTiles>
__device__ inline void multiply_tile(const Ring<T>& ring, RingPosition<T::kStages>& at, int blocks, int ctas,
                                     float (&sums)[T::kWaves][T::kSums]) {
    const Share<T> share;
    const auto load_scales = [&](int wave) { return Scales<T, kBTiles>(ring, at.stage, share, wave); };
    const auto release = [&] {
        __syncwarp();
        if (share.lane < ctas) arrive_in_cluster(in_cta(ring.empty(at.stage), share.lane));
        at.advance();
    };
    if constexpr (T::kGroups == 2) {
        float partial[T::kSums] = {};
        for (int block = 0; block < blocks; ++block) {
            wait(ring.full(at.stage), at.parity);
#pragma unroll
            for (int wave = 0; wave < T::kWaves; ++wave) {
                start_products(ring, at.stage, share.group_row + wave * 64, partial);
                wait_products<0>(partial);
                promote<T, kBTiles>(sums[wave], partial, load_scales(wave));
            }
            release();
        }
    } else {
        // The products of a stage are under way while those of the stage before are promoted.
        float even[T::kSums] = {}, odd[T::kSums] = {};
        RingPosition<T::kStages> ahead = at;
        const auto start = [&](float (&partial)[T::kSums]) {
            wait(ring.full(ahead.stage), ahead.parity);
            start_products(ring, ahead.stage, 0, partial);
            ahead.advance();
        };
        const auto finish = [&](const float (&partial)[T::kSums], const Scales<T, kBTiles>& scales) {
            promote<T, kBTiles>(sums[0], partial, scales);
            release();
        };
        if (blocks == 0) return;
        begin_products(odd);  // made zero now rather than while products are under way
        start(even);
        Scales<T, kBTiles> scales = load_scales(0);
        for (; blocks > 2; blocks -= 2) {
            start(odd);
            wait_products<1>(even);
            finish(even, scales);
            scales = load_scales(0);
            start(even);
            wait_products<1>(odd);
            finish(odd, scales);
            scales = load_scales(0);
        }
        if (blocks == 2) {
            start(odd);
            wait_products<1>(even);
            finish(even, scales);
            scales = load_scales(0);
            wait_products<0>(odd);
            finish(odd, scales);
        } else {
            wait_products<0>(even);
            finish(even, scales);
        }
    }
}

// Stores 16 rows of a warp through shared memory, 64 columns at a time.
template <class T>
__device__ inline void copy_out(const Arguments& args, const Ring<T>& ring, const Share<T>& share, int row,
                                int column, const float (&sums)[T::kSums]) {
    const uint32_t staged = ring.out(share.warp);
    // This thread's words in chunk 0 of rows lane / 4 and 8 further; chunk c is at ^ c << 4, see
    // kSwizzleBytes. Opaque, lest the addresses of all chunks be kept in registers through the product.
    uint32_t words = staged + share.lane / 4 * (128 + 16) + share.lane % 4 * 4;
    asm volatile("" : "+r"(words));
#pragma unroll
    for (int first = 0; first < T::kN; first += 64) {
        if (column + first >= args.gemm.all.n) break;
        if (share.lane == 0) wait_stores_read();
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 32; i += 2) {
            const float* x = sums + first / 2 + i;
            const uint32_t pair = round_pair<false>(x[0], x[1], Bf16{});
            asm volatile("st.shared.b32 [%0], %1;" ::"r"((words ^ i / 4 << 4) + i / 2 % 2 * 8 * 128),
                         "r"(pair)
                         : "memory");
        }
        fence_for_copies();
        __syncwarp();
        if (share.lane == 0) {
            store_box(&args.out, staged, column + first, row, 0);
            commit_stores();
        }
    }
}

template <class T, GemmGroups kGroups>
__device__ inline void store_tile(const Arguments& args, const Ring<T>& ring, const Work& work,
                                  const float (&sums)[T::kWaves][T::kSums]) {
    const Share<T> share;
#pragma unroll
    for (int wave = 0; wave < T::kWaves; ++wave) {
        // The slab of this warp begins in row `row`; the copy leaves out rows of the result beyond its last,
        // but not those of the next group.
        const int row = work.row + share.row - share.lane / 4 + wave * 64;
        if (row >= work.row_end) break;
        if constexpr (T::kCopiesOut) {
            if (args.out_by_copy && (kGroups != GemmGroups::kRows || row + T::kSlabRows <= work.row_end)) {
                copy_out<T>(args, ring, share, row, work.column, sums[wave]);
                continue;
            }
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int mine = row + share.lane / 4 + half * 8;
            if (mine >= work.row_end) continue;
            store_row<T::kN / 8>(args.gemm, result_at(args.gemm, work.product, mine, work.column),
                                 share.column, work.column_end - work.column, [&](int j) {
                                     const float* x = sums[wave] + j * 4 + half * 2;
                                     return float2{x[0], x[1]};
                                 });
        }
    }
}

template <class T, GemmGroups kGroups, bool kBTiles>
__device__ inline void multiply_tiles(const Arguments& args, const Ring<T>& ring) {
    RingPosition<T::kStages> at;
    for_each_tile<T, kGroups>(args, [&](const Work& work) {
        float sums[T::kWaves][T::kSums] = {};
        multiply_tile<T, kBTiles>(ring, at, work.blocks, args.ctas, sums);
        store_tile<T, kGroups>(args, ring, work, sums);
        __syncwarp();
    });
    if (threadIdx.x % kWarpSize == 0) wait_stores();
}

template <class T, GemmGroups kGroups, bool kBTiles>
__global__ void __launch_bounds__(kThreads, 1) gemm_kernel(const __grid_constant__ Arguments args) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    extern __shared__ uint8_t memory[];
    const Ring<T> ring(memory);
    if (threadIdx.x == 0) {
        prefetch_map(&args.a);
        prefetch_map(&args.b);
        if (args.out_by_copy) prefetch_map(&args.out);
        for (int stage = 0; stage < T::kStages; ++stage) {
            init_barrier(ring.full(stage), kFullArrivals);
            init_barrier(ring.empty(stage), T::kWarps * args.ctas);
        }
        publish_barriers();
    }
    synchronize_cluster();
    // Without a second warpgroup that multiplies the third only waits for the others' end.
    if (threadIdx.x < 128) {
        release_registers<T::kLoadRegisters>();
        const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
        if (warp == 0)
            copy_codes<T, kGroups>(args, ring);
        else
            copy_scales<T, kGroups, kBTiles>(args, ring, warp);
    } else if (T::kGroups == 2 || threadIdx.x < 256) {
        claim_registers<T::kMultiplyRegisters>();
        multiply_tiles<T, kGroups, kBTiles>(args, ring);
    }
    synchronize_cluster();  // others may still arrive here
#endif
}

}  // namespace dse::cuda::hopper
