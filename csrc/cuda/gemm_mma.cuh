// The tensor core's product of two BF16 fragments (PTX ISA: ldmatrix, mma.sync.m16n8k16).
#pragma once
#include <cstdint>

namespace dse::cuda {

// Four 8x8 matrices of 16-bit elements; lane i names row i % 8 (16 bytes of shared memory) of matrix i / 8.
// Each lane gets, of matrix j in words[j], elements 2 * (lane % 4) and the next of row lane / 4, or with
// kTranspose of column lane / 4.
template <bool kTranspose>
__device__ inline void load_matrices(uint32_t shared_address, uint32_t (&words)[4]) {
    if constexpr (kTranspose) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                     : "r"(shared_address)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                     : "r"(shared_address)
                     : "memory");
    }
}

// sums [16, 8] += a [16, 16] b [8, 16]^T in FP32. A lane holds of `sums` the columns 2 * (lane % 4) and the
// next of rows lane / 4 (elements 0, 1) and lane / 4 + 8 (2, 3).
__device__ inline void multiply_add(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace dse::cuda
