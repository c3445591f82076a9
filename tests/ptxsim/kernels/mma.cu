// The tensor core of sm_80 and its matrix loads, by inline PTX: one warp, one tile.
#include <cuda_runtime.h>

#include <cstdint>

__device__ uint32_t address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

__device__ void load4(const void* row, uint32_t (&r)[4], bool transposed) {
    if (transposed) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address(row)));
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address(row)));
    }
}

__device__ void load2(const void* row, uint32_t (&r)[2], bool transposed) {
    if (transposed) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                     : "=r"(r[0]), "=r"(r[1])
                     : "r"(address(row)));
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                     : "=r"(r[0]), "=r"(r[1])
                     : "r"(address(row)));
    }
}

// D [16, 8] = A [16, 16] B + C with A in rows and B given as its transpose [8, 16] (columns) or as B [16, 8]
// (read transposed); both through shared memory and ldmatrix.
template <bool kHalf, bool kTransposed>
__device__ void product16(const uint16_t* a, const uint16_t* b, const float* c, float* d) {
    __shared__ __align__(16) uint16_t sa[16][16], sb[16][16];
    const int lane = threadIdx.x;
    for (int i = lane; i < 256; i += 32) sa[i / 16][i % 16] = a[i];
    for (int i = lane; i < 128; i += 32) {
        if (kTransposed) {
            sb[i / 8][i % 8] = b[i];
        } else {
            sb[i / 16][i % 16] = b[i];
        }
    }
    __syncwarp();
    uint32_t ra[4], rb[2];
    load4(&sa[lane % 16][lane / 16 * 8], ra, false);
    load2(kTransposed ? &sb[lane % 16][0] : &sb[lane % 8][lane / 8 % 2 * 8], rb, kTransposed);
    float r[4];
    const int row = lane / 4, column = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) r[i] = c[(row + i / 2 * 8) * 8 + column + i % 2];
    if (kHalf) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
            "{%0,%1,%2,%3};"
            : "+f"(r[0]), "+f"(r[1]), "+f"(r[2]), "+f"(r[3])
            : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));
    } else {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
            "{%0,%1,%2,%3};"
            : "+f"(r[0]), "+f"(r[1]), "+f"(r[2]), "+f"(r[3])
            : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]), "r"(rb[1]));
    }
    for (int i = 0; i < 4; ++i) d[(row + i / 2 * 8) * 8 + column + i % 2] = r[i];
}
extern "C" __global__ void product_bf16(const uint16_t* a, const uint16_t* b, const float* c, float* d) {
    product16<false, false>(a, b, c, d);
}
extern "C" __global__ void product_bf16_transposed(const uint16_t* a, const uint16_t* b, const float* c,
                                                   float* d) {
    product16<false, true>(a, b, c, d);
}
extern "C" __global__ void product_f16(const uint16_t* a, const uint16_t* b, const float* c, float* d) {
    product16<true, false>(a, b, c, d);
}

// The k = 8 shape: A [16, 8], B^T [8, 8], loaded without ldmatrix.
extern "C" __global__ void product_bf16_k8(const uint32_t* a, const uint32_t* b, const float* c, float* d) {
    const int row = threadIdx.x / 4, pair = threadIdx.x % 4;
    float r[4];
    for (int i = 0; i < 4; ++i) r[i] = c[(row + i / 2 * 8) * 8 + pair * 2 + i % 2];
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(r[0]), "+f"(r[1]), "+f"(r[2]), "+f"(r[3])
        : "r"(a[row * 4 + pair]), "r"(a[(row + 8) * 4 + pair]), "r"(b[row * 4 + pair]));
    for (int i = 0; i < 4; ++i) d[(row + i / 2 * 8) * 8 + pair * 2 + i % 2] = r[i];
}

#if __CUDA_ARCH__ >= 890
// FP8: A [16, 32], B^T [8, 32] as bytes, four to a word.
extern "C" __global__ void product_e4m3(const uint32_t* a, const uint32_t* b, const float* c, float* d) {
    const int row = threadIdx.x / 4, t = threadIdx.x % 4;
    float r[4];
    for (int i = 0; i < 4; ++i) r[i] = c[(row + i / 2 * 8) * 8 + t * 2 + i % 2];
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(r[0]), "+f"(r[1]), "+f"(r[2]), "+f"(r[3])
        : "r"(a[row * 8 + t]), "r"(a[(row + 8) * 8 + t]), "r"(a[row * 8 + t + 4]),
          "r"(a[(row + 8) * 8 + t + 4]), "r"(b[row * 8 + t]), "r"(b[row * 8 + t + 4]));
    for (int i = 0; i < 4; ++i) d[(row + i / 2 * 8) * 8 + t * 2 + i % 2] = r[i];
}
#endif

// 8x8 matrices to registers and back, both ways: y is x, or its four blocks transposed.
template <bool kTransposed>
__device__ void round_trip(const uint16_t* x, uint16_t* y, const int* rows) {
    __shared__ __align__(16) uint16_t in[32][8];
    const int lane = threadIdx.x;
    for (int j = 0; j < 8; ++j) in[lane][j] = x[lane * 8 + j];
    __syncwarp();
    uint32_t r[4];
    load4(&in[rows[lane]][0], r, kTransposed);
    for (int m = 0; m < 4; ++m) {
        y[(m * 8 + lane / 4) * 8 + lane % 4 * 2] = static_cast<uint16_t>(r[m]);
        y[(m * 8 + lane / 4) * 8 + lane % 4 * 2 + 1] = static_cast<uint16_t>(r[m] >> 16);
    }
}
extern "C" __global__ void matrices(const uint16_t* x, uint16_t* y, const int* rows) {
    round_trip<false>(x, y, rows);
}
extern "C" __global__ void matrices_transposed(const uint16_t* x, uint16_t* y, const int* rows) {
    round_trip<true>(x, y, rows);
}

#if __CUDA_ARCH__ >= 900
extern "C" __global__ void store_matrices(const uint32_t* x, uint16_t* y) {
    __shared__ __align__(16) uint16_t out[32][8];
    const int lane = threadIdx.x;
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                     address(&out[lane][0])),
                 "r"(x[lane]), "r"(x[32 + lane]), "r"(x[64 + lane]), "r"(x[96 + lane])
                 : "memory");
    __syncwarp();
    for (int j = 0; j < 8; ++j) y[lane * 8 + j] = out[lane][j];
}
#endif

// ---- faults for some arguments, right for others

// ldmatrix of rows that other lanes wrote, with or without __syncwarp between.
extern "C" __global__ void matrices_unordered(const uint16_t* x, uint32_t* y, int ordered) {
    __shared__ __align__(16) uint16_t in[32][8];
    const int lane = threadIdx.x;
    for (int j = 0; j < 8; ++j) in[lane][j] = x[lane * 8 + j];
    if (ordered) __syncwarp();
    uint32_t r[4];
    load4(&in[lane ^ 1][0], r, false);
    for (int m = 0; m < 4; ++m) y[m * 32 + lane] = r[m];
}
extern "C" __global__ void matrices_misaligned(const uint16_t*, uint32_t* y, int element) {
    __shared__ __align__(16) uint16_t in[33][8];
    const int lane = threadIdx.x;
    for (int j = 0; j < 8; ++j) in[lane + 1][j] = 0;
    if (lane == 0) in[0][7] = 0;
    __syncwarp();
    uint32_t r[4];
    load4(&in[lane][element], r, false);
    for (int m = 0; m < 4; ++m) y[m * 32 + lane] = r[m];
}
extern "C" __global__ void mma_by_some_lanes(const uint16_t* a, float* d, int lanes) {
    if (threadIdx.x >= lanes) return;
    float r[4] = {};
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%4}, {%4}, {%0,%1,%2,%3};"
        : "+f"(r[0]), "+f"(r[1]), "+f"(r[2]), "+f"(r[3])
        : "r"(uint32_t{a[threadIdx.x]}));
    d[threadIdx.x] = r[0];
}
