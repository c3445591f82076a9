#include "formats.h"

#include <cmath>

#include "fault.h"

namespace ptxsim {
namespace {

// Whether a magnitude whose discarded bits are `rest` (half of the last place: `half`) goes one up.
bool rounds_up(Rounding rounding, bool negative, bool odd, uint64_t rest, uint64_t half) {
    switch (rounding) {
        case Rounding::kZero:
            return false;
        case Rounding::kDown:
            return negative && rest != 0;
        case Rounding::kUp:
            return !negative && rest != 0;
        case Rounding::kNearestAway:
            return rest >= half;
        default:
            return rest > half || (rest == half && odd);
    }
}

uint64_t overflow_code(const FloatFormat& format, bool negative, Rounding rounding, bool saturate) {
    const bool towards_zero = rounding == Rounding::kZero || (rounding == Rounding::kDown && !negative) ||
                              (rounding == Rounding::kUp && negative);
    if (saturate || towards_zero) return format.largest_code;
    return format.has_infinity ? format.largest_code + 1 : format.nan_code;
}

template <const FloatFormat& format, int kCodes>
std::array<float, kCodes> table_of() {
    std::array<float, kCodes> table;
    for (int code = 0; code < kCodes; ++code)
        table[code] = static_cast<float>(format_to_double(format, static_cast<uint64_t>(code)));
    return table;
}

template <class Operation>
uint64_t per_half(uint64_t a, uint64_t b, Operation operation) {
    return operation(a & 0xffff, b & 0xffff) | operation(a >> 16 & 0xffff, b >> 16 & 0xffff) << 16;
}

bool is_negative(Type type, uint64_t cell) { return cell >> (8 * type_bytes(type) - 1) & 1; }

uint64_t nan_of(Type type) {
    if (type == Type::kF64) return kDouble.nan_code;
    return type == Type::kF32 ? kCanonicalFloatNaN : kCanonicalHalfNaN;
}

uint64_t float_extreme(Type type, uint64_t a, uint64_t b, bool want_max) {
    if (type == Type::kF16x2 || type == Type::kBF16x2) {
        const Type half = type == Type::kF16x2 ? Type::kF16 : Type::kBF16;
        return per_half(a, b, [&](uint64_t x, uint64_t y) { return float_extreme(half, x, y, want_max); });
    }
    const double x = cell_to_double(type, a), y = cell_to_double(type, b);
    if (std::isnan(x)) return std::isnan(y) ? nan_of(type) : b;
    if (std::isnan(y)) return a;
    const bool a_below = x < y || (x == y && is_negative(type, a));
    return a_below == want_max ? b : a;
}

}  // namespace

const std::array<float, 65536> kHalfValues = table_of<kHalf, 65536>();
const std::array<float, 256> kE4M3Values = table_of<kE4M3, 256>();
const std::array<float, 256> kE5M2Values = table_of<kE5M2, 256>();

uint64_t round_to_format(const FloatFormat& format, bool negative, uint64_t significand, int exponent,
                         Rounding rounding, bool saturate) {
    const uint64_t sign = negative ? format.sign_bit() : 0;
    if (significand == 0) return sign;
    const int leading = std::countl_zero(significand);
    significand <<= leading;  // value = significand * 2^(top - 63), with bit 63 set
    const int top = exponent - leading + 63;
    const int smallest = 1 - format.bias();  // exponent of the smallest normal number
    int shift = 63 - format.fraction_bits;
    if (top < smallest) shift += smallest - top;

    uint64_t kept = 0, rest = 1, half = 2;  // shift > 64: less than half of the last place
    if (shift < 64) {
        kept = significand >> shift;
        rest = significand & ((1ull << shift) - 1);
        half = 1ull << (shift - 1);
    } else if (shift == 64) {
        rest = significand;
        half = 1ull << 63;
    }
    kept += rounds_up(rounding, negative, kept & 1, rest, half);

    // The hidden bit of a normal number adds one to the exponent field, as does a carry out of the fraction.
    uint64_t code = kept;
    if (top >= smallest) {
        if (top > format.bias() + 1) return sign | overflow_code(format, negative, rounding, saturate);
        code += static_cast<uint64_t>(top - smallest) << format.fraction_bits;
    }
    if (code > format.largest_code) code = overflow_code(format, negative, rounding, saturate);
    return sign | code;
}

uint64_t round_to_format(const FloatFormat& format, double value, Rounding rounding, bool saturate) {
    const uint64_t bits = double_to_bits(value);
    const bool negative = bits >> 63;
    if (std::isnan(value)) return format.nan_code;
    if (std::isinf(value)) {
        const uint64_t sign = negative ? format.sign_bit() : 0;
        return sign | overflow_code(format, negative, Rounding::kNearest, saturate);
    }
    const int field = static_cast<int>(bits >> 52 & 0x7ff);
    const uint64_t fraction = bits & ((1ull << 52) - 1);
    const uint64_t significand = field == 0 ? fraction : fraction | 1ull << 52;
    return round_to_format(format, negative, significand, (field == 0 ? 1 : field) - 1075, rounding,
                           saturate);
}

double format_to_double(const FloatFormat& format, uint64_t code) {
    const uint64_t magnitude = code & (format.sign_bit() - 1);
    const double sign = code & format.sign_bit() ? -1.0 : 1.0;
    if (magnitude > format.largest_code)
        return magnitude == format.largest_code + 1 && format.has_infinity ? sign * INFINITY : NAN;
    const uint64_t fraction = magnitude & ((1ull << format.fraction_bits) - 1);
    const int field = static_cast<int>(magnitude >> format.fraction_bits);
    const uint64_t significand = field == 0 ? fraction : fraction | 1ull << format.fraction_bits;
    const int exponent = (field == 0 ? 1 : field) - format.bias() - format.fraction_bits;
    return sign * std::ldexp(static_cast<double>(significand), exponent);
}

uint16_t round_to_half(double value, Rounding rounding) {
    return static_cast<uint16_t>(round_to_format(kHalf, value, rounding, false));
}

uint16_t round_to_bf16(double value, Rounding rounding) {
    return static_cast<uint16_t>(round_to_format(kBF16, value, rounding, false));
}

double add_to_odd(double a, double b) {
    const double sum = a + b;
    if (!std::isfinite(sum)) return sum;
    const double b_part = sum - a;  // TwoSum: sum + error == a + b exactly
    const double error = (a - (sum - b_part)) + (b - b_part);
    const uint64_t bits = double_to_bits(sum);
    if (error == 0 || (bits & 1)) return sum;
    // The exact sum lies between `sum`, which is even, and one of its neighbours, which are odd.
    const bool away_from_zero = (error > 0) == (sum > 0);
    return bits_to_double(away_from_zero ? bits + 1 : bits - 1);
}

double cell_to_double(Type type, uint64_t cell) {
    switch (type) {
        case Type::kF64:
            return bits_to_double(cell);
        case Type::kF32:
            return bits_to_float(cell);
        case Type::kF16:
            return half_to_float(static_cast<uint16_t>(cell));
        case Type::kBF16:
            return bf16_to_float(static_cast<uint16_t>(cell));
        default:
            throw Fault("INTERNAL", std::string("no float value of type ") + type_name(type));
    }
}

uint64_t float_add(Type type, uint64_t a, uint64_t b) {
    switch (type) {
        case Type::kF64:
            return double_to_bits(bits_to_double(a) + bits_to_double(b));
        case Type::kF32: {
            const float sum = bits_to_float(a) + bits_to_float(b);
            return std::isnan(sum) ? kCanonicalFloatNaN : float_to_bits(sum);
        }
        case Type::kF16:
            return round_to_half(add_to_odd(cell_to_double(type, a), cell_to_double(type, b)));
        case Type::kBF16:
            return round_to_bf16(add_to_odd(cell_to_double(type, a), cell_to_double(type, b)));
        case Type::kF16x2:
            return per_half(a, b, [](uint64_t x, uint64_t y) { return float_add(Type::kF16, x, y); });
        case Type::kBF16x2:
            return per_half(a, b, [](uint64_t x, uint64_t y) { return float_add(Type::kBF16, x, y); });
        default:
            throw Fault("INTERNAL", std::string("no float addition of type ") + type_name(type));
    }
}

uint64_t float_min(Type type, uint64_t a, uint64_t b) { return float_extreme(type, a, b, false); }
uint64_t float_max(Type type, uint64_t a, uint64_t b) { return float_extreme(type, a, b, true); }

}  // namespace ptxsim
