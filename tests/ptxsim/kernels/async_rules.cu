// Small kernels for rules of the asynchronous instructions that the gemms do not come near: each fault is a
// kernel of its own, named after what it does wrong.
#include "faults.cuh"
#include "hopper.cuh"

namespace {

using namespace hopper;

// ---- a copy through shared memory: y = x + 1, and z = y read back by another thread. 256 floats, 64
// threads.

// clang-format off
#define COPY_FAULTS(X) \
    X(none) X(size_of_8) X(read_before_written) X(exit_before_load) X(init_twice) \
    X(invalidate_in_use) X(parity_of_2) X(bytes_left) X(count_of_0) X(barrier_misaligned) \
    X(source_written_without_fence) X(store_not_committed) X(plain_read_in_flight) \
    X(token_of_another_phase) X(mbarrier_in_global) X(read_only_result) X(used_after_invalidate)
// clang-format on

DEFINE_FAULTS(CopyFault, COPY_FAULTS);

template <CopyFault kFault>
__device__ void copy(const float* x, float* y, float* z) {
    __shared__ alignas(128) float buffer[256];
    __shared__ alignas(16) uint64_t barriers[3];
    const uint32_t bytes = sizeof buffer, at = shared(buffer), thread = threadIdx.x;
    uint32_t barrier = shared(barriers);
    if (kFault == CopyFault::barrier_misaligned) barrier += 4;
    if (thread == 0) {
        init(barrier, kFault == CopyFault::count_of_0 ? 0 : 1);
        if (kFault == CopyFault::init_twice) init(barrier, 1);
        fence_init();
    }
    if (kFault == CopyFault::source_written_without_fence)
        for (uint32_t i = thread; i < 256; i += blockDim.x) z[i] = x[i];
    __syncthreads();
    const float* source = kFault == CopyFault::source_written_without_fence ? z : x;
    if (thread == 0) {
        if (kFault == CopyFault::mbarrier_in_global)
            asm volatile("{\n.reg .b64 t;\nmbarrier.arrive.b64 t, [%0];\n}" ::"l"(y) : "memory");
        arrive_expect(barrier, bytes);
        load(at, source, kFault == CopyFault::size_of_8 ? 8 : bytes, barrier);
        if (kFault == CopyFault::invalidate_in_use) invalidate(barrier);
    }
    if (kFault == CopyFault::exit_before_load) return;
    if (kFault == CopyFault::plain_read_in_flight) {
        y[thread] = buffer[thread];
    }
    if (kFault == CopyFault::token_of_another_phase) {
        asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.shared::cta.b64 p, [%0], %1;\n}" ::"r"(barrier),
                     "l"(uint64_t{5})
                     : "memory");
    }
    wait(barrier, kFault == CopyFault::parity_of_2 ? 2 : 0);
    for (uint32_t i = thread; i < 256; i += blockDim.x) buffer[i] += 1.f;
    fence_async();
    __syncthreads();
    if (thread == 0) {
        store(y, at, bytes);
        if (kFault != CopyFault::store_not_committed) commit();
        if (kFault == CopyFault::read_before_written)
            wait_stores_read();
        else
            wait_stores();
        if (kFault == CopyFault::bytes_left) arrive_expect(barrier, 16);
        if (kFault == CopyFault::used_after_invalidate) {
            invalidate(barrier);
            arrive(barrier);
        }
    }
    __syncthreads();
    for (uint32_t i = thread; i < 256; i += blockDim.x) z[i] = y[i];
}

// ---- wgmma m64n8k16: d = a b', A from registers, B written by ordinary stores. 128 threads.

// clang-format off
#define PRODUCT_FAULTS(X) \
    X(none) X(no_proxy_fence) X(operand_changed) X(accumulator_undefined) X(descriptor_differs) \
    X(reserved_bits) X(three_warps) X(one_warp_more)
// clang-format on

DEFINE_FAULTS(ProductFault, PRODUCT_FAULTS);

// a: the fragments, 4 words a thread; b [8, 16] BF16 pairs in words; d [64, 8].
template <ProductFault kFault>
__device__ void product(const uint32_t* a, const uint32_t* b, float* d) {
    __shared__ alignas(1024) uint32_t matrix[64];  // without swizzle: 2 blocks of 8 rows of 16 bytes
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    if (thread < 64) matrix[thread % 8 / 4 * 32 + thread / 8 * 4 + thread % 4] = b[thread];
    if (kFault != ProductFault::no_proxy_fence) fence_async();
    __syncthreads();
    uint32_t fragment[4];
    for (int i = 0; i < 4; ++i) fragment[i] = a[thread * 4 + i];
    float sum[4];
    if (kFault == ProductFault::accumulator_undefined) {
        // Never written: the product adds to whatever the registers hold.
        asm volatile("{\n.reg .f32 t;\nmov.f32 %0, t;\nmov.f32 %1, t;\nmov.f32 %2, t;\nmov.f32 %3, t;\n}"
                     : "=f"(sum[0]), "=f"(sum[1]), "=f"(sum[2]), "=f"(sum[3]));
    } else {
        for (float& value : sum) value = 0.f;
    }
    for (float& value : sum) settle(value);
    uint64_t where = shared(matrix) >> 4 | uint64_t{128 >> 4} << 16 | uint64_t{256 >> 4} << 32;
    if (kFault == ProductFault::descriptor_differs) where += lane == 5;
    if (kFault == ProductFault::reserved_bits) where |= uint64_t{1} << 46;
    wgmma_fence();
    wgmma_bf16(sum, fragment, where, kFault == ProductFault::accumulator_undefined);
    if (kFault == ProductFault::one_warp_more && warp == 3) wgmma_bf16(sum, fragment, where, 1);
    wgmma_commit();
    if (kFault == ProductFault::operand_changed)
        asm volatile("add.u32 %0, %0, 1;" : "+r"(fragment[0])::"memory");
    wgmma_wait();
    if (kFault == ProductFault::operand_changed && fragment[0] == 12345) d[0] = 1.f;
    for (int i = 0; i < 4; ++i) d[(warp * 16 + lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

// ---- distributed shared memory: each CTA of a pair writes into the other. 32 threads.

#define PAIR_FAULTS(X) X(none) X(no_sync_before_read) X(no_sync_before_exit) X(relaxed_barrier)

DEFINE_FAULTS(PairFault, PAIR_FAULTS);

template <PairFault kFault>
__device__ void pair(float* out) {
    __shared__ float inbox[32];
    const uint32_t rank = cluster_rank(), thread = threadIdx.x;
    const uint32_t mine = shared(inbox) + 4 * thread, theirs = in_cta(mine, rank ^ 1);
    cluster_sync();  // both CTAs have begun
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(theirs), "f"(rank * 100.f + thread) : "memory");
    if (kFault == PairFault::relaxed_barrier) {
        asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
        cluster_wait();
    } else if (kFault != PairFault::no_sync_before_read) {
        cluster_sync();
    }
    float value;
    if (kFault == PairFault::no_sync_before_exit)
        asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(theirs) : "memory");
    else
        asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(mine) : "memory");
    out[blockIdx.x * 32 + thread] = value;
    if (kFault == PairFault::no_sync_before_read) cluster_sync();
}

}  // namespace

#define COPY(name)                                                                                     \
    extern "C" __global__ void __launch_bounds__(64) copy_##name(const float* x, float* y, float* z) { \
        copy<CopyFault::name>(x, y, z);                                                                \
    }
COPY_FAULTS(COPY)

#define PRODUCT(name)                                                    \
    extern "C" __global__ void __launch_bounds__(128)                    \
        product_##name(const uint32_t* a, const uint32_t* b, float* d) { \
        product<ProductFault::name>(a, b, d);                            \
    }
PRODUCT_FAULTS(PRODUCT)

#define PAIR(name)                                                                 \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) pair_##name(float* out) { \
        pair<PairFault::name>(out);                                                \
    }
PAIR_FAULTS(PAIR)

// Loads a 16 x 16 box of floats at (x, y) through any tensor map and copies it out.
extern "C" __global__ void box(const __grid_constant__ CUtensorMap map, float* out, int x, int y) {
    __shared__ alignas(128) float buffer[256];
    __shared__ alignas(8) uint64_t barrier;
    if (threadIdx.x == 0) {
        init(shared(&barrier), 1);
        fence_init();
        arrive_expect(shared(&barrier), sizeof buffer);
        load_2d(shared(buffer), &map, shared(&barrier), x, y);
    }
    __syncthreads();
    wait(shared(&barrier), 0);
    for (int i = threadIdx.x; i < 256; i += blockDim.x) out[i] = buffer[i];
}

// Stores a 16 x 16 box of floats at (x, y).
extern "C" __global__ void unbox(const __grid_constant__ CUtensorMap map, const float* in, int x, int y) {
    __shared__ alignas(128) float buffer[256];
    for (int i = threadIdx.x; i < 256; i += blockDim.x) buffer[i] = in[i];
    fence_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        store_2d(&map, shared(buffer), x, y);
        commit();
        wait_stores();
    }
}
