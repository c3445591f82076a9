// One kernel for the whole gemm family. Each CTA computes one tile of the result:
//
//   device memory -> registers (codes of the next stage, while this one is multiplied)
//                 -> shared memory (as BF16, each code converted once per CTA)
//                 -> ldmatrix, mma.sync -> FP32 sums of 128 codes -> promoted sums -> result
//
// Shared memory holds panels: rows of 64 BF16, 128 bytes, whose eight 16-byte chunks are permuted by the row
// (chunk ^ row % 8), so that neither the stores of conversion nor ldmatrix meet a bank twice. A panel's rows
// are rows of the operand, or steps of K where B's codes lie side by side along N; ldmatrix transposes these.
//
// On an SM of an A100 the 128x128 tile needs, for 128 codes of depth, 2048 clocks of tensor core, as many of
// shared memory, and 1300 of integer arithmetic for conversion: it runs at the rate of BF16, not of FP8.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cuda/convert.cuh"
#include "cuda/gemm.cuh"
#include "cuda/gemm_mma.cuh"
#include "cuda/gemm_plan.h"
#include "cuda/gemm_store.cuh"
#include "cuda/gemm_work.cuh"
#include "cuda/hopper/gemm.cuh"
#include "cuda/vector.cuh"

namespace dse::cuda {
namespace {

constexpr int kPanel = 64;             // BF16 in a row of a panel
constexpr int kRowBytes = 2 * kPanel;  // 32 banks
constexpr int kPiece = 16;             // codes loaded at once
constexpr int kMmaM = 16, kMmaN = 8, kMmaK = 16;

template <GemmTileIndex kIndex>
struct Tile {
    static constexpr GemmTile kShape = kGemmTile[kIndex];
    static constexpr int kM = kShape.m, kN = kShape.n;
    static constexpr int kWarpM = kM / kShape.warps_m, kWarpN = kN / kShape.warps_n;
    static constexpr int kThreads = 32 * kShape.warps_m * kShape.warps_n;
    static constexpr int kPanels = kShape.depth / kPanel;  // in a stage
    static constexpr int kABytes = kPanels * kM * kRowBytes, kBBytes = kPanels * kN * kRowBytes;
    static constexpr int kScales = kM + kN;
    static constexpr int kStageBytes =
        kABytes + kBBytes + (kScales * 4 + kRowBytes - 1) / kRowBytes * kRowBytes;
    static constexpr int kSharedBytes = 2 * kStageBytes;
    static constexpr int kAPieces = kM * kShape.depth / kPiece / kThreads;
    static constexpr int kBPieces = kN * kShape.depth / kPiece / kThreads;

    static_assert(kTile % kN == 0, "a tile's columns must share one block of scales");
    static_assert(kShape.depth == kPanel || kShape.depth == kTile, "a stage must lie within one scale");
    static_assert(kN % kPanel == 0, "panels along N must be whole");
    static_assert(kWarpM % kMmaM == 0 && kWarpN % (2 * kMmaN) == 0, "ldmatrix reads 16 x 16");
    static_assert(kAPieces * kThreads * kPiece == kM * kShape.depth, "every thread loads as much of A");
    static_assert(kBPieces * kThreads * kPiece == kN * kShape.depth, "every thread loads as much of B");
    static_assert(kScales <= kThreads, "every thread loads at most one scale");
};

// Codes that lie side by side along `columns`.
struct CodeRows {
    const uint8_t* codes;
    int64_t stride;
    int64_t rows, columns;
    bool vectors;
};

// 16 codes of a row; zeros beyond the last row and column.
__device__ inline uint4 load_piece(const CodeRows& x, int64_t row, int64_t column) {
    uint4 piece{0, 0, 0, 0};
    const int64_t left = row < x.rows ? x.columns - column : 0;
    if (left <= 0) return piece;
    const uint8_t* codes = x.codes + row * x.stride + column;
    if (x.vectors && left >= kPiece) return *reinterpret_cast<const uint4*>(codes);
    // A loop, so that the registers of 16 loads are not needed at once.
#pragma unroll 1
    for (int i = 0; i < kPiece; i += 4) {
        uint32_t word = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (i + j < left) word |= static_cast<uint32_t>(codes[i + j]) << (8 * j);
        piece = {piece.y, piece.z, piece.w, word};
    }
    return piece;
}

// Position of a 16-byte chunk in a panel.
__device__ inline int chunk_offset(int row, int chunk) {
    return row * kRowBytes + ((chunk ^ (row % 8)) << 4);
}

// One operand's codes of a stage, spread over the threads of a CTA; kRows rows in kCount panels. A quarter of
// a warp has four pieces of two adjacent rows: 64 bytes in a row when it loads, and eight different chunks
// when it stores.
template <int kThreads, int kPieces, int kRows>
struct Stage {
    uint4 pieces[kPieces];

    struct Position {
        int panel, row, piece;
    };
    static __device__ Position position(int i) {
        const int index = static_cast<int>(threadIdx.x) + i * kThreads;
        return {index / (4 * kRows), index / 4 % kRows, index % 4};
    }

    // Panels side by side along K.
    __device__ void load_along_k(const CodeRows& x, int64_t k) {
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            const Position at = position(i);
            pieces[i] = load_piece(x, at.row, k + at.panel * kPanel + at.piece * kPiece);
        }
    }

    // kPanelsN panels side by side along N, then the next 64 steps of K.
    template <int kPanelsN>
    __device__ void load_along_n(const CodeRows& x, int64_t k) {
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            const Position at = position(i);
            pieces[i] = load_piece(x, k + at.panel / kPanelsN * kPanel + at.row,
                                   at.panel % kPanelsN * kPanel + at.piece * kPiece);
        }
    }

    __device__ void store_as_bf16(char* panels) const {
        uint32_t nan = 0;
#pragma unroll
        for (int i = 0; i < kPieces; ++i)
            nan |= has_nan(pieces[i].x) | has_nan(pieces[i].y) | has_nan(pieces[i].z) | has_nan(pieces[i].w);
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            const uint32_t codes[4] = {pieces[i].x, pieces[i].y, pieces[i].z, pieces[i].w};
            uint32_t values[8];
#pragma unroll
            for (int w = 0; w < 4; ++w) decode_codes(codes[w], values[2 * w], values[2 * w + 1]);
            if (nan != 0) {  // rare, so that the search for them costs little
#pragma unroll
                for (int w = 0; w < 8; ++w) values[w] = restore_nan(values[w]);
            }
            const Position at = position(i);
            char* panel = panels + at.panel * kRows * kRowBytes;
            *reinterpret_cast<uint4*>(panel + chunk_offset(at.row, 2 * at.piece)) = {values[0], values[1],
                                                                                     values[2], values[3]};
            *reinterpret_cast<uint4*>(panel + chunk_offset(at.row, 2 * at.piece + 1)) = {
                values[4], values[5], values[6], values[7]};
        }
    }
};

// The part of a tile that one warp computes.
template <class T>
struct WarpSums {
    static constexpr int kMmasM = T::kWarpM / kMmaM, kMmasN = T::kWarpN / kMmaN;
    float of[kMmasM][kMmasN][4];

    __device__ void clear() {
#pragma unroll
        for (int i = 0; i < kMmasM; ++i)
#pragma unroll
            for (int j = 0; j < kMmasN; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) of[i][j][e] = 0;
    }

    // Adds the product of one panel of A and 64 steps of B; the warp's first row and column are m and n.
    template <bool kAlongN>
    __device__ void multiply(uint32_t a_panel, uint32_t b_panels, int m, int n) {
        const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
        for (int k = 0; k < kPanel / kMmaK; ++k) {
            uint32_t a[kMmasM][4], b[kMmasN][2];
#pragma unroll
            for (int i = 0; i < kMmasM; ++i)
                load_matrices<false>(a_panel + chunk_offset(m + i * kMmaM + lane % 16, 2 * k + lane / 16),
                                     a[i]);
#pragma unroll
            for (int j = 0; j < kMmasN; j += 2) {
                uint32_t words[4];  // 8 columns at k, k + 8, then the next 8 columns
                if constexpr (kAlongN) {
                    const int chunk = (n + j * kMmaN) / 8 + lane / 16;
                    const uint32_t panel = b_panels + chunk / 8 * (kPanel * kRowBytes);
                    load_matrices<true>(panel + chunk_offset(k * kMmaK + lane % 16, chunk % 8), words);
                } else {
                    const int row = n + j * kMmaN + lane % 8 + lane / 16 * 8;
                    load_matrices<false>(b_panels + chunk_offset(row, 2 * k + lane / 8 % 2), words);
                }
                b[j][0] = words[0];
                b[j][1] = words[1];
                b[j + 1][0] = words[2];
                b[j + 1][1] = words[3];
            }
#pragma unroll
            for (int i = 0; i < kMmasM; ++i)
#pragma unroll
                for (int j = 0; j < kMmasN; ++j) multiply_add(of[i][j], a[i], b[j]);
        }
    }

    // Adds the sums of a block of 128 steps, scaled; a_scales and b_scales are those of the warp's first row
    // and column.
    __device__ void promote(const WarpSums& partial, const float* a_scales, const float* b_scales) {
        const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
        float2 columns[kMmasN];
#pragma unroll
        for (int j = 0; j < kMmasN; ++j)
            columns[j] = *reinterpret_cast<const float2*>(b_scales + j * kMmaN + lane % 4 * 2);
#pragma unroll
        for (int i = 0; i < kMmasM; ++i) {
            const float low = a_scales[i * kMmaM + lane / 4], high = a_scales[i * kMmaM + lane / 4 + 8];
#pragma unroll
            for (int j = 0; j < kMmasN; ++j) {
                const float (&p)[4] = partial.of[i][j];
                float (&s)[4] = of[i][j];
                s[0] = __fmaf_rn(p[0], low * columns[j].x, s[0]);
                s[1] = __fmaf_rn(p[1], low * columns[j].y, s[1]);
                s[2] = __fmaf_rn(p[2], high * columns[j].x, s[2]);
                s[3] = __fmaf_rn(p[3], high * columns[j].y, s[3]);
            }
        }
    }
};

template <class T, bool kAlongN>
__device__ inline void multiply_tile(const GemmArguments& p, const GemmWork& work, char* shared, int m, int n,
                                     WarpSums<T>& sums) {
    const CodeRows a_rows{work.a, p.all.a.row_stride, work.rows, work.depth, p.a_vectors};
    const CodeRows b_rows = kAlongN
                                ? CodeRows{work.b, p.all.b.k_stride, work.depth, work.columns, p.b_vectors}
                                : CodeRows{work.b, p.all.b.row_stride, work.columns, work.depth, p.b_vectors};
    // Stages on their way to registers. With few rows, reading B is all there is to wait for, and there are
    // registers for two; not where B's codes are transposed, which takes some more of them.
    constexpr int kAhead = T::kShape.warps_m == 1 && !kAlongN ? 2 : 1;
    Stage<T::kThreads, T::kAPieces, T::kM> a[kAhead];
    Stage<T::kThreads, T::kBPieces, kAlongN ? kPanel : T::kN> b[kAhead];
    float scale[kAhead] = {};

    // This thread's scale: of a row of A, then of a column of B (one for all of them if B is in blocks).
    const int row = static_cast<int>(threadIdx.x), column = row - T::kM;
    const float* scales = work.a_scales + row * p.all.a.scale_row_stride;
    int64_t scale_stride = p.all.a.scale_k_stride;
    bool has_scale = row < work.rows;
    if (column >= 0) {
        scales = work.b_scales + (p.all.b.rows_per_scale == 1 ? column * p.all.b.scale_row_stride : 0);
        scale_stride = p.all.b.scale_k_stride;
        has_scale = column < work.columns;
    }

    // Step s of K goes through registers `slot` = s % kAhead, then through stage s % 2 of shared memory.
    const auto fetch = [&](int slot, int64_t step) {
        const int64_t k = step * T::kShape.depth;
        a[slot].load_along_k(a_rows, k);
        if constexpr (kAlongN) {
            b[slot].template load_along_n<T::kN / kPanel>(b_rows, k);
        } else {
            b[slot].load_along_k(b_rows, k);
        }
        if (has_scale) scale[slot] = scales[k / kTile * scale_stride];
    };
    const auto stage_of = [&](int64_t step) { return shared + step % 2 * T::kStageBytes; };
    const auto store = [&](int slot, char* stage) {
        a[slot].store_as_bf16(stage);
        b[slot].store_as_bf16(stage + T::kABytes);
        if (row < T::kScales) reinterpret_cast<float*>(stage + T::kABytes + T::kBBytes)[row] = scale[slot];
    };

    const int64_t steps = ceil_div(work.depth, T::kShape.depth);
    WarpSums<T> partial;
#pragma unroll
    for (int slot = 0; slot < kAhead; ++slot)
        if (slot < steps) fetch(slot, slot);
    if (steps > 0) store(0, stage_of(0));
    __syncthreads();
    const auto multiply_step = [&](int slot, int64_t step) {
        const bool last = step + 1 == steps;
        if (step + kAhead < steps) fetch(slot, step + kAhead);

        const char* stage = stage_of(step);
        const uint32_t a_panels = static_cast<uint32_t>(__cvta_generic_to_shared(stage));
        const uint32_t b_panels = a_panels + T::kABytes;
        if (T::kShape.depth == kTile || step % 2 == 0) partial.clear();
#pragma unroll
        for (int panel = 0; panel < T::kPanels; ++panel)
            partial.template multiply<kAlongN>(a_panels + panel * T::kM * kRowBytes,
                                               b_panels + panel * T::kN * kRowBytes, m, n);
        if (T::kShape.depth == kTile || step % 2 == 1 || last) {
            const float* stage_scales = reinterpret_cast<const float*>(stage + T::kABytes + T::kBBytes);
            sums.promote(partial, stage_scales + m, stage_scales + T::kM + n);
        }

        // The other stage was read before the last barrier.
        if (!last) store((slot + 1) % kAhead, stage_of(step + 1));
        __syncthreads();
    };
    for (int64_t first = 0; first < steps; first += kAhead) {
#pragma unroll
        for (int slot = 0; slot < kAhead; ++slot)
            if (first + slot < steps) multiply_step(slot, first + slot);
    }
}

template <class T, bool kAlongN>
__global__ void __launch_bounds__(T::kThreads, T::kShape.ctas_per_sm)
    gemm_kernel(const __grid_constant__ GemmArguments p) {
    extern __shared__ __align__(128) char shared[];
    GemmWork work;
    if (!find_work<T::kM, T::kN>(p, work)) return;

    const int warp = static_cast<int>(threadIdx.x) / kWarpSize,
              lane = static_cast<int>(threadIdx.x) % kWarpSize;
    const int m = warp / T::kShape.warps_n * T::kWarpM, n = warp % T::kShape.warps_n * T::kWarpN;
    WarpSums<T> sums;
    sums.clear();
    multiply_tile<T, kAlongN>(p, work, shared, m, n, sums);

    const int64_t row_bytes = p.all.out.row_stride * (p.all.out.store == GemmStore::kBf16 ? 2 : 4);
#pragma unroll
    for (int i = 0; i < WarpSums<T>::kMmasM; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = m + i * kMmaM + lane / 4 + 8 * half;
            if (row >= work.rows) continue;
            store_row<WarpSums<T>::kMmasN>(p, work.out + row * row_bytes, n + lane % 4 * 2, work.columns,
                                           [&](int j) {
                                               const float (&s)[4] = sums.of[i][j];
                                               return float2{s[2 * half], s[2 * half + 1]};
                                           });
        }
}

template <GemmTileIndex kIndex, bool kAlongN>
void launch(const GemmArguments& p, int64_t ctas, cudaStream_t stream) {
    using T = Tile<kIndex>;
    const auto kernel = gemm_kernel<T, kAlongN>;
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, T::kSharedBytes) !=
        cudaSuccess)
        return;  // the caller asks for the error
    kernel<<<static_cast<unsigned>(ctas), T::kThreads, T::kSharedBytes, stream>>>(p);
}

template <bool kAlongN>
void launch(const GemmArguments& p, const GemmPlan& plan, cudaStream_t stream) {
    switch (plan.tile) {
        case kTile16x64:
            return launch<kTile16x64, kAlongN>(p, plan.tiles, stream);
        case kTile64x64:
            return launch<kTile64x64, kAlongN>(p, plan.tiles, stream);
        default:
            return launch<kTile128x128, kAlongN>(p, plan.tiles, stream);
    }
}

// Whether DSE_GEMM allows the Hopper path, and whether it demands it.
struct Paths {
    bool hopper = true, portable = true;
};
Paths chosen_paths() {
    const char* text = std::getenv("DSE_GEMM");
    const std::string path = text == nullptr ? "" : text;
    if (path == "portable") return {false, true};
    if (path == "hopper") return {true, false};
    if (!path.empty())
        throw std::invalid_argument("gemm: DSE_GEMM must be portable or hopper, got " + path +
                                    "; unset it to let device and shape decide");
    return {};
}

void run_portable(GemmArguments p, const GemmShape& shape, int sms, cudaStream_t stream) {
    const GemmProduct& all = p.all;
    const auto cycles = [&](int i) { return modelled_cycles(shape, static_cast<GemmTileIndex>(i), sms); };
    const GemmPlan plan = choose_plan(shape, kGemmTile, cycles, forced_tile());
    if (prints_plans()) print_plan("portable", shape, kGemmTile, cycles, plan, sms);

    const bool along_n = all.b.k_stride != 1;
    p.row_tiles = plan.row_tiles;
    p.column_tiles = plan.column_tiles;
    p.a_vectors = is_aligned(all.a.codes, 16) && all.a.row_stride % 16 == 0;
    p.b_vectors = is_aligned(all.b.codes, 16) && (along_n ? all.b.k_stride : all.b.row_stride) % 16 == 0 &&
                  p.b_codes_group_stride % 16 == 0;
    along_n ? launch<true>(p, plan, stream) : launch<false>(p, plan, stream);
}

void run(GemmArguments p, cudaStream_t stream) {
    const GemmProduct& all = p.all;
    if (all.m == 0 || all.n == 0 || (p.kind == GemmGroups::kDepth && p.groups.count == 0)) return;
    int device = 0, sms = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device) != cudaSuccess)
        return;
    const GemmShape shape{all.m, all.n, all.k, p.groups.count, p.kind};
    p.out_pairs = is_aligned(all.out.data, all.out.store == GemmStore::kBf16 ? 4 : 8) &&
                  all.out.row_stride % 2 == 0 && p.out_group_stride % 2 == 0;
    const Paths paths = chosen_paths();
    if (paths.hopper && hopper::run_gemm(p, shape, device, sms, stream)) return;
    if (!paths.portable)
        throw std::invalid_argument(
            "gemm: DSE_GEMM=hopper needs a device of compute capability 9.0, codes whose rows lie along K "
            "and "
            "begin at multiples of 16 bytes; unset it to let device and shape decide");
    run_portable(p, shape, sms, stream);
}

}  // namespace

void gemm(const GemmProduct& product, cudaStream_t stream) {
    GemmArguments p{};
    p.all = product;
    p.kind = GemmGroups::kNone;
    run(p, stream);
}

void grouped_gemm(const GemmProduct& all, int64_t groups, const int32_t* offs, int64_t offs_stride,
                  int64_t codes_group_stride, int64_t scales_group_stride, cudaStream_t stream) {
    GemmArguments p{};
    p.all = all;
    p.kind = GemmGroups::kRows;
    p.groups = {offs, groups};
    p.offs_stride = offs_stride;
    p.b_codes_group_stride = codes_group_stride;
    p.b_scales_group_stride = scales_group_stride;
    run(p, stream);
}

void grouped_gemm_wgrad(const GemmProduct& all, int64_t groups, const int32_t* offs, int64_t offs_stride,
                        int64_t out_group_stride, cudaStream_t stream) {
    GemmArguments p{};
    p.all = all;
    p.kind = GemmGroups::kDepth;
    p.groups = {offs, groups};
    p.offs_stride = offs_stride;
    p.out_group_stride = out_group_stride;
    run(p, stream);
}

}  // namespace dse::cuda
