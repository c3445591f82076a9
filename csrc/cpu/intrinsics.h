// The intrinsics of x86-64, where there are any.
#pragma once
#if defined(__x86_64__) && defined(__GNUC__)
// Some of them pass uninitialised vectors on purpose, as operands that are masked out.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#endif
