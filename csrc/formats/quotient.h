// Quotients of moderate size on a GPU: what IEEE division does there after it has looked for extreme
// exponents.
#pragma once
#include "formats/bits.h"

namespace dse {

// n / d rounded to nearest even, from a reciprocal of d. One that is off by one in the last place will do for
// n = 448 and 65024, whatever d, and a rounded one for d = 448 and 65024, whatever n:
// tests/ops/quotient_sweep.cpp.
DSE_FN float corrected_quotient(float n, float d, float reciprocal) {
    const float q = n * reciprocal;
    return multiply_add(multiply_add(-d, q, n), reciprocal, q);
}

DSE_FN float refined_reciprocal(float d, float reciprocal) {
    return multiply_add(multiply_add(-d, reciprocal, 1.0f), reciprocal, reciprocal);
}

// n / d for d in [1, 2] and n in [1, 2^100].
DSE_FN float divide_moderate(float n, float d) {
#if defined(__CUDA_ARCH__)
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(d));
    return corrected_quotient(n, d, refined_reciprocal(d, y));
#else
    return divide(n, d);
#endif
}

}  // namespace dse
