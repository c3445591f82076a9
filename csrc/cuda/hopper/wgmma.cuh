// Products of E4M3 matrices in shared memory by the four warps of a warpgroup together (PTX ISA: wgmma).
//
//     begin_products(sums);                                 // their registers were used before
//     multiply<false>(sums, a, b); multiply<true>(sums, a + ..., b + ...); ...
//     commit_products(sums);
//     wait_products<0>(sums);                               // only now may they be read
//
// With wait_products<1> those committed last may still be under way, those committed before are done.
//
// sums [64, N] = a [64, 32] b [N, 32]^T, or += with kAdd, in FP32. Of the N/2 sums of a thread, number i is
// in row 16 * warp + lane / 4 + 8 * (i / 2 % 2) and column 8 * (i / 4) + 2 * (lane % 4) + i % 2.
#pragma once
#include <cstdint>

namespace dse::cuda::hopper {

// clang-format off
#define DSE_SUMS(c, i) \
    c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3]), c(d[i + 4]), c(d[i + 5]), c(d[i + 6]), c(d[i + 7])
#define DSE_SUMS_12(c) DSE_SUMS(c, 0), c(d[8]), c(d[9]), c(d[10]), c(d[11])
#define DSE_SUMS_24(c) DSE_SUMS(c, 0), DSE_SUMS(c, 8), DSE_SUMS(c, 16)
#define DSE_SUMS_32(c) DSE_SUMS_24(c), DSE_SUMS(c, 24)
#define DSE_SUMS_48(c) DSE_SUMS_32(c), DSE_SUMS(c, 32), DSE_SUMS(c, 40)
#define DSE_SUMS_64(c) DSE_SUMS_48(c), DSE_SUMS(c, 48), DSE_SUMS(c, 56)
#define DSE_NAMES_12 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11"
#define DSE_NAMES_24 DSE_NAMES_12 ", %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23"
#define DSE_NAMES_32 DSE_NAMES_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define DSE_NAMES_48 DSE_NAMES_32 \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define DSE_NAMES_64 DSE_NAMES_48 \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
// clang-format on

// The functions above. The sums are operands that are read and written whatever kAdd: so they stay in one
// set of registers, and no use of them moves across. (Were they only written with kAdd
// false, the compiler would start a product before the last one's sums are used up, in registers it lacks.)
#define DSE_MULTIPLY(columns, sums, a_name, b_name, add_name)                                           \
    __device__ inline void begin_products(float (&d)[sums]) {                                           \
        asm volatile("wgmma.fence.sync.aligned;" : DSE_SUMS_##sums("+f")::"memory");                    \
    }                                                                                                   \
    template <bool kAdd>                                                                                \
    __device__ inline void multiply(float (&d)[sums], uint64_t a, uint64_t b) {                         \
        asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " add_name                                   \
                     ", 0;\n"                                                                           \
                     "wgmma.mma_async.sync.aligned.m64n" columns "k32.f32.e4m3.e4m3 {" DSE_NAMES_##sums \
                     "}, " a_name ", " b_name ", add, 1, 1;\n}"                                         \
                     : DSE_SUMS_##sums("+f")                                                            \
                     : "l"(a), "l"(b), "n"(kAdd));                                                      \
    }                                                                                                   \
    __device__ inline void commit_products(float (&d)[sums]) {                                          \
        asm volatile("wgmma.commit_group.sync.aligned;" : DSE_SUMS_##sums("+f")::"memory");             \
    }                                                                                                   \
    template <int kUnderWay>                                                                            \
    __device__ inline void wait_products(float (&d)[sums]) {                                            \
        asm volatile("wgmma.wait_group.sync.aligned " a_name ";"                                        \
                     : DSE_SUMS_##sums("+f")                                                            \
                     : "n"(kUnderWay)                                                                   \
                     : "memory");                                                                       \
    }

DSE_MULTIPLY("128", 64, "%64", "%65", "%66")
DSE_MULTIPLY("96", 48, "%48", "%49", "%50")
DSE_MULTIPLY("64", 32, "%32", "%33", "%34")
DSE_MULTIPLY("48", 24, "%24", "%25", "%26")
DSE_MULTIPLY("24", 12, "%12", "%13", "%14")

#undef DSE_MULTIPLY
#undef DSE_SUMS
#undef DSE_SUMS_12
#undef DSE_SUMS_24
#undef DSE_SUMS_32
#undef DSE_SUMS_48
#undef DSE_SUMS_64
#undef DSE_NAMES_12
#undef DSE_NAMES_24
#undef DSE_NAMES_32
#undef DSE_NAMES_48
#undef DSE_NAMES_64

}  // namespace dse::cuda::hopper
