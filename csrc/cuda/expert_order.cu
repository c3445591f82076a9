// The order of rows by expert, and its inverse.
//
// A stable counting sort in three kernels. The choices are cut into parts; a warp counts each part's choices
// of every expert; one block turns the counts [parts, E] into the rows where they start; then each warp goes
// through its part again, 32 choices at a time, those of one expert in a vote knowing their order among each
// other. So rows depend on no order of execution. Bound by latency: a part is at least 512 choices, 16 steps.
#include "cuda/fill.cuh"
#include "cuda/launch.cuh"
#include "cuda/permute.cuh"
#include "cuda/warp.cuh"
#include "formats/tiles.h"

namespace dse::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kScanThreads = 1024;
constexpr int64_t kSharedBytes = 48 << 10;  // what every GPU gives without being asked for more
constexpr int64_t kMaxParts = 1024;         // one block goes through the counts of all

// How the choices are cut up, and how many warps of a block have their counts in shared memory; with none
// they are in the table itself.
struct SortPlan {
    SortPlan(int64_t count, int64_t experts) {
        const int64_t least = 512 > 2 * experts ? 512 : 2 * experts;  // else the table outweighs the choices
        const int64_t wanted = ceil_div(count, kMaxParts);
        each = ceil_div(wanted > least ? wanted : least, kWarpSize) * kWarpSize;
        parts = ceil_div(count, each);
        const int64_t fitting = kSharedBytes / (experts * static_cast<int64_t>(sizeof(int32_t)));
        shared_warps = fitting < kThreads / kWarpSize ? fitting : kThreads / kWarpSize;
    }
    int64_t each;  // choices of a part
    int64_t parts;
    int64_t shared_warps;
};

struct Part {
    int64_t index, begin, end;
};

__device__ Part part_of_warp(int64_t count, int64_t each) {
    const int64_t index =
        static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarpSize) + threadIdx.x / kWarpSize;
    const int64_t begin = index * each;
    return {index, begin, begin + each < count ? begin + each : count};
}

// The expert of choice i, or -1.
__device__ int expert_of(const int32_t* indices, int64_t i, int64_t end, int experts) {
    const int32_t expert = i < end ? indices[i] : -1;
    return expert < experts ? expert : -1;
}

// table[part, e]: how often the part chose expert e.
template <bool kShared>
__global__ void __launch_bounds__(kThreads)
    count_kernel(const int32_t* indices, int64_t count, int64_t each, int experts, int32_t* table) {
    extern __shared__ int32_t shared[];
    const Part part = part_of_warp(count, each);
    if (part.begin >= count) return;
    const int lane = threadIdx.x % kWarpSize;
    int32_t* row = table + part.index * experts;
    int32_t* counted = kShared ? shared + threadIdx.x / kWarpSize * experts : row;
    for (int e = lane; e < experts; e += kWarpSize) counted[e] = 0;
    __syncwarp();
    for (int64_t i = part.begin + lane; i < part.end; i += kWarpSize) {
        const int expert = expert_of(indices, i, part.end, experts);
        if (expert >= 0) atomicAdd(counted + expert, 1);
    }
    __syncwarp();
    if (kShared)
        for (int e = lane; e < experts; e += kWarpSize) row[e] = counted[e];
}

// `value` of this thread and all before it in the block. `of_warp` is a number for each warp.
__device__ int32_t sum_up_to(int32_t value, int32_t* of_warp) {
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, lane = thread % kWarpSize;
    const int warp = thread / kWarpSize;
    value = sum_to_lane(value);
    if (lane == kWarpSize - 1) of_warp[warp] = value;
    __syncthreads();
    for (int w = 0; w < warp; ++w) value += of_warp[w];
    return value;
}

// f(index, counts) for every kBatch parts from `begin` to `end`, whose counts of one expert are read before f
// is called: `index` is the first one's place in the table, and counts of parts that are not there are 0.
constexpr int kBatch = 8;
template <class F>
__device__ void each_batch(const int32_t* table, int64_t begin, int64_t end, int64_t experts, int64_t expert,
                           const F& f) {
    for (int64_t part = begin; part < end; part += kBatch) {
        int32_t counts[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i)
            counts[i] = part + i < end ? table[(part + i) * experts + expert] : 0;
        f(part, counts);
    }
}

// Turns the counts of each part into its first row of each expert; offs: where the experts' rows end. Threads
// x have an expert each, threads y a share of the parts.
__global__ void __launch_bounds__(kScanThreads)
    scan_kernel(int32_t* table, int64_t parts, int experts, int32_t* offs) {
    __shared__ int32_t of_warp[kScanThreads / kWarpSize];
    __shared__ int32_t ends[kScanThreads], totals[kScanThreads];
    const int width = blockDim.x, thread = threadIdx.y * width + threadIdx.x;
    const int64_t share = ceil_div(parts, blockDim.y);
    const int64_t begin = min(threadIdx.y * share, parts), end = min(begin + share, parts);
    int32_t before = 0;  // rows of the experts before this round's
    for (int first = 0; first < experts; first += width) {
        const int expert = first + threadIdx.x;
        const bool present = expert < experts;
        int32_t mine = 0;
        each_batch(table, begin, present ? end : begin, experts, expert, [&](int64_t, const int32_t* counts) {
#pragma unroll
            for (int i = 0; i < kBatch; ++i) mine += counts[i];
        });
        totals[thread] = mine;
        __syncthreads();
        int32_t total = 0, earlier = 0;  // of all shares of this expert, and of those before this thread's
        for (int y = 0; y < blockDim.y; ++y) {
            if (y == threadIdx.y) earlier = total;
            total += totals[y * width + threadIdx.x];
        }
        const int32_t sum = sum_up_to(threadIdx.y == 0 ? total : 0, of_warp);
        if (threadIdx.y == 0) ends[threadIdx.x] = before + sum;
        __syncthreads();
        const int32_t its_end = ends[threadIdx.x];
        if (present && threadIdx.y == 0) offs[expert] = its_end;
        int32_t row = its_end - total + earlier;
        each_batch(table, begin, present ? end : begin, experts, expert,
                   [&](int64_t part, const int32_t* counts) {
#pragma unroll
                       for (int i = 0; i < kBatch; ++i) {
                           if (part + i < end) table[(part + i) * experts + expert] = row;
                           row += counts[i];
                       }
                   });
        before = ends[width - 1];
        __syncthreads();  // before the next round's sums
    }
}

template <bool kShared>
__global__ void __launch_bounds__(kThreads)
    place_kernel(const int32_t* indices, int64_t count, int64_t each, int experts, int32_t* table,
                 const int32_t* offs, int32_t* rows, int32_t* slots) {
    extern __shared__ int32_t shared[];
    const int lane = threadIdx.x % kWarpSize;
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = offs[experts - 1] + static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
         i < count; i += step)
        rows[i] = -1;
    const Part part = part_of_warp(count, each);
    if (part.begin >= count) return;
    int32_t* row = table + part.index * experts;
    int32_t* next = kShared ? shared + threadIdx.x / kWarpSize * experts : row;
    if (kShared)
        for (int e = lane; e < experts; e += kWarpSize) next[e] = row[e];
    __syncwarp();
    int ahead = expert_of(indices, part.begin + lane, part.end, experts);
    for (int64_t first = part.begin; first < part.end; first += kWarpSize) {
        const int64_t i = first + lane;
        const int expert = ahead;
        ahead = expert_of(indices, i + kWarpSize, part.end, experts);
        const unsigned same = __match_any_sync(kAllLanes, expert);
        const int rank = __popc(same & ((1u << lane) - 1));
        const int32_t slot = expert < 0 ? -1 : next[expert] + rank;
        __syncwarp();
        if (expert >= 0 && rank == 0) next[expert] = slot + __popc(same);
        __syncwarp();
        if (i < part.end) slots[i] = slot;
        if (slot >= 0) rows[slot] = static_cast<int32_t>(i);
    }
}

__global__ void __launch_bounds__(kThreads)
    inverse_kernel(const int32_t* places, int64_t count, int64_t size, int32_t* result) {
    const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += step) {
        const int32_t place = places[i];
        if (place >= 0 && place < size) atomicMax(result + place, static_cast<int32_t>(i));
    }
}

}  // namespace

int64_t expert_order_workspace(int64_t count, int64_t num_experts) {
    return SortPlan(count, num_experts).parts * num_experts;
}

void expert_order(const int32_t* indices, int64_t count, int64_t num_experts, int32_t* rows, int32_t* slots,
                  int32_t* offs, int32_t* workspace, cudaStream_t stream) {
    const SortPlan plan(count, num_experts);
    const bool shared = plan.shared_warps > 0;
    const int64_t warps = shared ? plan.shared_warps : kThreads / kWarpSize;
    const auto blocks = static_cast<unsigned>(ceil_div(plan.parts, warps));
    const auto threads = static_cast<unsigned>(warps) * kWarpSize;
    const auto experts = static_cast<int>(num_experts);
    const size_t bytes = shared ? static_cast<size_t>(warps * num_experts) * sizeof(int32_t) : 0;
    if (count > 0) {
        const auto kernel = shared ? count_kernel<true> : count_kernel<false>;
        kernel<<<blocks, threads, bytes, stream>>>(indices, count, plan.each, experts, workspace);
    }
    const unsigned width = grid_size(ceil_div(num_experts, kWarpSize) * kWarpSize, kScanThreads);
    scan_kernel<<<1, dim3(width, kScanThreads / width), 0, stream>>>(workspace, plan.parts, experts, offs);
    if (count > 0) {
        const auto kernel = shared ? place_kernel<true> : place_kernel<false>;
        kernel<<<blocks, threads, bytes, stream>>>(indices, count, plan.each, experts, workspace, offs, rows,
                                                   slots);
    }
}

void inverse_order(const int32_t* places, int64_t count, int64_t size, int32_t* result, cudaStream_t stream) {
    fill(result, size, -1, stream);
    if (size == 0 || count == 0) return;
    inverse_kernel<<<grid_size(ceil_div(count, kThreads), kMaxGridX), kThreads, 0, stream>>>(places, count,
                                                                                             size, result);
}

}  // namespace dse::cuda
