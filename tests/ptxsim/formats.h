// Number formats as the PTX ISA states them, written independently of csrc/formats, which they help to test.
#pragma once
#include <array>
#include <bit>
#include <cstdint>

#include "program.h"

namespace ptxsim {

inline float bits_to_float(uint64_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits)); }
inline uint64_t float_to_bits(float value) { return std::bit_cast<uint32_t>(value); }
inline double bits_to_double(uint64_t bits) { return std::bit_cast<double>(bits); }
inline uint64_t double_to_bits(double value) { return std::bit_cast<uint64_t>(value); }

// What an arithmetic instruction gives for a NaN result.
inline constexpr uint64_t kCanonicalFloatNaN = 0x7fffffff;
inline constexpr uint64_t kCanonicalHalfNaN = 0x7fff;  // of bf16 too

// A binary floating-point format of up to 64 bits.
struct FloatFormat {
    int exponent_bits, fraction_bits;
    bool has_infinity;      // e4m3 has none: the exponent of all ones holds numbers, save the last code
    uint64_t largest_code;  // of the largest finite value
    uint64_t nan_code;
    constexpr int bias() const { return (1 << (exponent_bits - 1)) - 1; }
    constexpr uint64_t sign_bit() const { return 1ull << (exponent_bits + fraction_bits); }
};

inline constexpr FloatFormat kHalf{5, 10, true, 0x7bff, kCanonicalHalfNaN};
inline constexpr FloatFormat kBF16{8, 7, true, 0x7f7f, kCanonicalHalfNaN};
inline constexpr FloatFormat kTF32{8, 10, true, 0x3fbff, 0x3ffff};  // the upper 19 bits of a register
inline constexpr FloatFormat kFloat{8, 23, true, 0x7f7fffff, kCanonicalFloatNaN};
inline constexpr FloatFormat kDouble{11, 52, true, 0x7fefffffffffffff, 0x7fffffffffffffff};
inline constexpr FloatFormat kE4M3{4, 3, false, 0x7e, 0x7f};
inline constexpr FloatFormat kE5M2{5, 2, true, 0x7b, 0x7f};

// The code nearest, in the direction of `rounding`, to (-1)^negative * significand * 2^exponent, rounded
// once. Overflow gives the largest finite value where the rounding direction or `saturate` says so, else
// infinity (NaN in a format without). kNone rounds to nearest even.
uint64_t round_to_format(const FloatFormat& format, bool negative, uint64_t significand, int exponent,
                         Rounding rounding, bool saturate);
// The same for a double, NaN and infinities included.
uint64_t round_to_format(const FloatFormat& format, double value, Rounding rounding, bool saturate);

// Exact.
double format_to_double(const FloatFormat& format, uint64_t code);
extern const std::array<float, 65536> kHalfValues;
extern const std::array<float, 256> kE4M3Values, kE5M2Values;
inline float half_to_float(uint16_t bits) { return kHalfValues[bits]; }
inline float bf16_to_float(uint16_t bits) { return bits_to_float(static_cast<uint32_t>(bits) << 16); }
inline float e4m3_to_float(uint8_t bits) { return kE4M3Values[bits]; }
inline float e5m2_to_float(uint8_t bits) { return kE5M2Values[bits]; }

// One rounding of an exactly held value; NaN becomes 0x7fff.
uint16_t round_to_half(double value, Rounding rounding = Rounding::kNearest);
uint16_t round_to_bf16(double value, Rounding rounding = Rounding::kNearest);

// a + b rounded to odd: the exact sum and this value round alike to any format of at most 51 bits.
double add_to_odd(double a, double b);

// The type's values as double; f16, bf16, f32 and f64 only.
double cell_to_double(Type type, uint64_t cell);

// a + b in `type` (f16, bf16, their x2 forms, f32, f64), correctly rounded to nearest; for atomics and
// reductions.
uint64_t float_add(Type type, uint64_t a, uint64_t b);
// min and max of the same types by PTX's rule: a number beats a NaN, -0 < +0.
uint64_t float_min(Type type, uint64_t a, uint64_t b);
uint64_t float_max(Type type, uint64_t a, uint64_t b);

}  // namespace ptxsim
