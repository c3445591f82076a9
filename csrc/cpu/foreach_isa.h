// Compiles the file named by DSE_BODY once per instruction set, each time inside that set's namespace.
//
// A family's source file includes every header it needs, then
//     #define DSE_BODY "cpu/<family>.inc"
//     #include "cpu/foreach_isa.h"
// and then picks with DSE_SELECT. The body opens `namespace dse::cpu::DSE_ISA { ... }` and tests the
// macros DSE_HAS_AVX2, DSE_HAS_AVX512, DSE_HAS_VBMI and DSE_HAS_BF16. The target pragma comes after all
// includes, so no inline function of a header is ever compiled for an instruction set the host may lack.
//
// A family that gains nothing from BF16 instructions defines DSE_BODY_WITHOUT_BF16 first; the two BF16 paths
// then run the AVX-512 ones.
#ifndef DSE_BODY
#error "define DSE_BODY before including cpu/foreach_isa.h"
#endif

// What a body is made of: inlined into functions of its own instruction set, whatever the optimiser thinks.
#define DSE_INLINE static inline __attribute__((always_inline))

#define DSE_HAS_AVX2 0
#define DSE_HAS_AVX512 0
#define DSE_HAS_VBMI 0
#define DSE_HAS_BF16 0
#define DSE_ISA generic
#include DSE_BODY
#undef DSE_ISA

#if defined(__x86_64__) && defined(__GNUC__)
#undef DSE_HAS_AVX2
#define DSE_HAS_AVX2 1
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt")
#define DSE_ISA avx2
#include DSE_BODY
#undef DSE_ISA
#pragma GCC pop_options

#undef DSE_HAS_AVX512
#define DSE_HAS_AVX512 1
#pragma GCC push_options
#pragma GCC target( \
    "avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#define DSE_ISA avx512
#include DSE_BODY
#undef DSE_ISA
#pragma GCC pop_options

#undef DSE_HAS_VBMI
#define DSE_HAS_VBMI 1
#pragma GCC push_options
#pragma GCC target( \
    "avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#pragma GCC target("avx512vbmi,avx512vbmi2")
#define DSE_ISA avx512_vbmi
#include DSE_BODY
#undef DSE_ISA
#pragma GCC pop_options

#ifndef DSE_BODY_WITHOUT_BF16
#undef DSE_HAS_BF16
#define DSE_HAS_BF16 1
#pragma GCC push_options
#pragma GCC target( \
    "avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#pragma GCC target("avx512vbmi,avx512vbmi2,avx512bf16")
#define DSE_ISA avx512_bf16_vbmi
#include DSE_BODY
#undef DSE_ISA
#pragma GCC pop_options

#undef DSE_HAS_VBMI
#define DSE_HAS_VBMI 0
#pragma GCC push_options
#pragma GCC target( \
    "avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#pragma GCC target("avx512bf16")
#define DSE_ISA avx512_bf16
#include DSE_BODY
#undef DSE_ISA
#pragma GCC pop_options
#endif
#endif

// DSE_SELECT(f): the function (or table) `f` of the code path in use.
#if !defined(__x86_64__) || !defined(__GNUC__)
#define DSE_SELECT(f) (generic::f)
#elif defined(DSE_BODY_WITHOUT_BF16)
#define DSE_SELECT(f) \
    (::dse::cpu::select(generic::f, avx2::f, avx512::f, avx512_vbmi::f, avx512::f, avx512_vbmi::f))
#else
#define DSE_SELECT(f) \
    (::dse::cpu::select(generic::f, avx2::f, avx512::f, avx512_vbmi::f, avx512_bf16::f, avx512_bf16_vbmi::f))
#endif

#include "cpu/isa.h"

namespace dse::cpu {
// Arguments in the order of enum Isa.
template <class F>
F* select(F& generic, F& avx2, F& avx512, F& avx512_vbmi, F& avx512_bf16, F& avx512_bf16_vbmi) {
    F* const paths[kIsaCount] = {&generic, &avx2, &avx512, &avx512_vbmi, &avx512_bf16, &avx512_bf16_vbmi};
    return paths[static_cast<int>(current_isa())];
}
}  // namespace dse::cpu
