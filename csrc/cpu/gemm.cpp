// Plans the work of the gemm family and hands it out: every product is cut into rectangles of its result, and
// the threads take them from one queue, so that uneven groups leave no thread idle.
#include "cpu/gemm.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "cpu/gemm_task.h"
#include "cpu/intrinsics.h"

#define DSE_BODY "cpu/gemm.inc"
#include "cpu/foreach_isa.h"

namespace dse::cpu {

const DecodeTables kDecode = [] {
    DecodeTables t;
    for (int code = 0; code < 256; ++code) t.value[code] = E4M3::decode(static_cast<uint8_t>(code));
    for (int code = 0; code < 128; ++code) {
        const uint16_t bf16 = float_to_bf16(t.value[code]);
        t.bf16_low[code] = static_cast<uint8_t>(bf16);
        t.bf16_high[code] = static_cast<uint8_t>(bf16 >> 8);
    }
    for (int i = 0; i < 32; ++i) t.bf16_subnormal[i] = float_to_bf16(t.value[i % 8]);
    return t;
}();

namespace {

// The result of a group of up to this many rows in all comes from the dot kernel: 8 tokens, 8 experts each.
constexpr int64_t kGroupedDotRows = 64;

// A is converted for so many rows at a time that they stay near the core. More rows share a packed panel of B
// (which costs about as much as multiplying it with 4 rows), fewer leave work for every thread.
constexpr int64_t kMaxBlockRows = 384;
constexpr int64_t kMinBlockRows = 96;
constexpr int64_t kBlockCodes = int64_t{3} << 19;

// Multiply-adds below which a second thread costs more than it brings.
constexpr int64_t kThreadWork = int64_t{1} << 20;

// Per thread and kept: a fresh buffer in every call would cost more in page faults than a small product.
std::byte* thread_scratch(size_t bytes) {
    struct Free {
        void operator()(std::byte* p) const { std::free(p); }
    };
    constexpr size_t kPage = 4096;
    thread_local std::unique_ptr<std::byte, Free> buffer;
    thread_local size_t capacity = 0;
    if (bytes > capacity) {
        capacity = 0;
        const size_t rounded = (bytes + bytes / 4 + kPage - 1) / kPage * kPage;
        buffer.reset(static_cast<std::byte*>(std::aligned_alloc(kPage, rounded)));
        if (!buffer) throw std::bad_alloc();
        capacity = rounded;
    }
    return buffer.get();
}

// A product without depth, or rows that belong to no group.
void clear(const GemmTask& task) {
    const GemmOutput& out = task.product->out;
    if (out.store == GemmStore::kAccumulate) return;
    const int64_t size = out.store == GemmStore::kBf16 ? 2 : 4;
    for (int64_t m = task.m0; m < task.m1; ++m)
        std::memset(static_cast<std::byte*>(out.data) + (m * out.row_stride + task.n0) * size, 0,
                    static_cast<size_t>((task.n1 - task.n0) * size));
}

// How one product is cut into tasks.
struct Plan {
    int64_t first_task;
    int64_t row_blocks, column_ranges;

    GemmTask task(const GemmProduct& p, int64_t i) const {
        const int64_t row = i / column_ranges, column = i % column_ranges;
        const int64_t strips = num_tiles(p.n);  // ranges are whole blocks of 128 columns
        return {&p, p.m * row / row_blocks, p.m * (row + 1) / row_blocks,
                strips * column / column_ranges * kTile,
                std::min(p.n, strips * (column + 1) / column_ranges * kTile)};
    }
};

void run(const GemmProduct* products, int64_t count, bool dot, const ParallelFor& parallel_for) {
    int64_t work = 0, row_blocks = 0;
    std::vector<Plan> plans(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
        const GemmProduct& p = products[i];
        const int64_t most =
            dot ? kDotRows
                : std::clamp(kBlockCodes / std::max(p.k, int64_t{1}), kMinBlockRows, kMaxBlockRows);
        plans[i].row_blocks = p.n == 0 ? 0 : ceil_div(p.m, most);
        row_blocks += plans[i].row_blocks;
        work += p.m * p.n * p.k;
    }
    const int64_t threads = std::clamp<int64_t>(work / kThreadWork, 1, parallel_for.threads());
    // A product whose row blocks do not divide among the threads would leave one idle for the last of them.
    if (count == 1 && row_blocks > threads) {
        row_blocks = ceil_div(row_blocks, threads) * threads;
        plans[0].row_blocks = row_blocks;
    }
    // Four tasks a thread even out what the row blocks alone leave uneven.
    const int64_t ranges = threads == 1 || row_blocks == 0 ? 1 : ceil_div(4 * threads, row_blocks);
    int64_t tasks = 0;
    for (int64_t i = 0; i < count; ++i) {
        plans[i].first_task = tasks;
        plans[i].column_ranges =
            std::clamp<int64_t>(ranges, 1, std::max<int64_t>(1, num_tiles(products[i].n)));
        tasks += plans[i].row_blocks * plans[i].column_ranges;
    }

    const GemmKernels& kernels = *DSE_SELECT(kernels);
    std::atomic<int64_t> next{0};
    const auto work_off = [&](int64_t, int64_t) {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
            const auto after =
                std::upper_bound(plans.begin(), plans.end(), i,
                                 [](int64_t task, const Plan& plan) { return task < plan.first_task; });
            const Plan& plan = *(after - 1);
            const GemmTask task = plan.task(products[after - 1 - plans.begin()], i - plan.first_task);
            if (task.product->k == 0) {
                clear(task);
            } else {
                (dot ? kernels.dot : kernels.panel)(task, thread_scratch(kernels.scratch_bytes(task)));
            }
        }
    };
    parallel_for(threads, 1, work_off);
}

}  // namespace

void gemm(const GemmProduct& product, const ParallelFor& parallel_for) {
    run(&product, 1, product.m <= kDotRows && product.b.k_stride == 1, parallel_for);
}

void grouped_gemm(const GemmProduct& all, int64_t groups, const int32_t* offs, int64_t offs_stride,
                  int64_t codes_group_stride, int64_t scales_group_stride, const ParallelFor& parallel_for) {
    std::vector<GemmProduct> products(static_cast<size_t>(groups + 1), all);
    const int64_t out_size = all.out.store == GemmStore::kBf16 ? 2 : 4;
    int64_t start = 0;
    for (int64_t e = 0; e <= groups; ++e) {
        const int64_t end = e < groups ? offs[e * offs_stride] : all.m;
        GemmProduct& p = products[e];
        p.m = end - start;
        p.a.codes += start * all.a.row_stride;
        p.a.scales += start * all.a.scale_row_stride;
        p.out.data = static_cast<std::byte*>(all.out.data) + start * all.out.row_stride * out_size;
        if (e < groups) {
            p.b.codes += e * codes_group_stride;
            p.b.scales += e * scales_group_stride;
        } else {
            p.k = 0;  // rows of no group
        }
        start = end;
    }
    run(products.data(), groups + 1, all.m <= kGroupedDotRows && all.b.k_stride == 1, parallel_for);
}

void grouped_gemm_wgrad(const GemmProduct& all, int64_t groups, const int32_t* offs, int64_t offs_stride,
                        int64_t out_group_stride, const ParallelFor& parallel_for) {
    std::vector<GemmProduct> products(static_cast<size_t>(groups), all);
    int64_t start = 0, column = 0;
    for (int64_t e = 0; e < groups; ++e) {
        GemmProduct& p = products[e];
        const int64_t end = offs[e * offs_stride];
        p.k = end - start;
        p.a.codes += column;
        p.b.codes += column;
        p.a.scales += column / kTile * all.a.scale_k_stride;
        p.b.scales += column / kTile * all.b.scale_k_stride;
        p.out.data = static_cast<float*>(all.out.data) + e * out_group_stride;
        column = next_group_start(column, p.k);
        start = end;
    }
    run(products.data(), groups, all.m <= kDotRows, parallel_for);
}

}  // namespace dse::cpu
