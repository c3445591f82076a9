// Number formats as the PTX ISA states them, written independently of csrc/formats, which they help to test.
#pragma once
#include <bit>
#include <cstdint>

#include "program.h"

namespace ptxsim {

inline float bits_to_float(uint64_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits)); }
inline uint64_t float_to_bits(float value) { return std::bit_cast<uint32_t>(value); }
inline double bits_to_double(uint64_t bits) { return std::bit_cast<double>(bits); }
inline uint64_t double_to_bits(double value) { return std::bit_cast<uint64_t>(value); }

// Exact.
float half_to_float(uint16_t bits);
float bf16_to_float(uint16_t bits);
float e4m3_to_float(uint8_t bits);
float e5m2_to_float(uint8_t bits);

// One rounding of an exactly held value; NaN becomes the type's canonical NaN (0x7fff for half and bf16).
uint16_t round_to_half(double value, Rounding rounding = Rounding::kNearest);
uint16_t round_to_bf16(double value, Rounding rounding = Rounding::kNearest);

// a + b in `type` (f16, bf16, their x2 forms, f32, f64), correctly rounded to nearest; for atomics and
// reductions.
uint64_t float_add(Type type, uint64_t a, uint64_t b);
// min and max of the same types by PTX's rule: a NaN loses to a number, -0 < +0.
uint64_t float_min(Type type, uint64_t a, uint64_t b);
uint64_t float_max(Type type, uint64_t a, uint64_t b);

}  // namespace ptxsim
