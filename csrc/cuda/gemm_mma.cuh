// The instructions that the gemm kernels are made of: E4M3 codes as BF16, and the tensor core's product of
// two BF16 fragments (PTX ISA: ldmatrix, mma.sync.m16n8k16).
#pragma once
#include <cstdint>

namespace dse::cuda {

// Four codes as four BF16 in two words, exactly; a NaN code becomes 480, see has_nan. Exponent and mantissa
// of a code, at the place of a BF16's, are the code's value times 2^-120 (7 - 127), of subnormal codes too,
// which are subnormal there as well; a fused multiply-add with -0 undoes that and keeps the sign of zero.
__device__ inline void decode_codes(uint32_t codes, uint32_t& low, uint32_t& high) {
    constexpr uint32_t kTwoTo120 = 0x7b807b80u, kMinusZero = 0x80008000u;
    const auto decode = [](uint32_t upper_bytes) {
        const uint32_t magnitude = (upper_bytes >> 4) & 0x07f007f0u;
        uint32_t value;
        asm("fma.rn.bf16x2 %0, %1, %2, %3;"
            : "=r"(value)
            : "r"(magnitude | (upper_bytes & 0x80008000u)), "r"(kTwoTo120), "r"(kMinusZero));
        return value;
    };
    low = decode(__byte_perm(codes, 0, 0x1404));
    high = decode(__byte_perm(codes, 0, 0x3424));
}

// Whether one of four codes is NaN (0x7f or 0xff): only there does adding 1 to the magnitude carry into
// bit 7.
__device__ inline uint32_t has_nan(uint32_t codes) {
    return ((codes & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u;
}

// What decode_codes made of NaN codes, 480 or -480 = 0x43f0 or 0xc3f0, replaced by NaN.
__device__ inline uint32_t restore_nan(uint32_t values) {
    if ((values & 0x7fffu) == 0x43f0u) values |= 0x7fc0u;
    if ((values & 0x7fff0000u) == 0x43f00000u) values |= 0x7fc00000u;
    return values;
}

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
