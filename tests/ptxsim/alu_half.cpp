// Arithmetic of f16 and bf16, single and packed in pairs, each result rounded once to nearest even.
#include <cmath>

#include "alu.h"
#include "alu_lanes.h"
#include "formats.h"

namespace ptxsim {
namespace {

constexpr uint16_t kSign = 0x8000;

struct Half {
    static double value(uint16_t bits) { return half_to_float(bits); }
    static uint16_t round(double value) { return round_to_half(value); }
    static constexpr uint16_t kExponent = 0x7c00, kOne = 0x3c00;
};

struct BF16 {
    static double value(uint16_t bits) { return bf16_to_float(bits); }
    static uint16_t round(double value) { return round_to_bf16(value); }
    static constexpr uint16_t kExponent = 0x7f80, kOne = 0x3f80;
};

template <class Format>
bool is_nan(uint16_t bits) {
    return (bits & ~kSign) > Format::kExponent;
}

template <class Format>
uint16_t flush_if(bool wanted, uint16_t bits) {
    return wanted && (bits & Format::kExponent) == 0 ? bits & kSign : bits;
}

// .ftz, .sat and .relu of a rounded result.
template <class Format>
uint16_t finish(const Instruction& instruction, uint16_t bits) {
    bits = flush_if<Format>(instruction.flush_subnormals, bits);
    if (instruction.saturate) {
        if (is_nan<Format>(bits) || (bits & kSign)) return 0;
        return bits > Format::kOne ? Format::kOne : bits;
    }
    if (instruction.relu && (bits & kSign) && !is_nan<Format>(bits)) return 0;
    return bits;
}

// Two halves' exact sum need not fit a double, but rounded to odd it rounds to the half as the exact sum
// does. Their product always fits, so the fused form rounds once as well.
constexpr auto sum = [](double a, double b) { return add_to_odd(a, b); };
constexpr auto difference = [](double a, double b) { return add_to_odd(a, -b); };
constexpr auto product = [](double a, double b) { return a * b; };
constexpr auto fused = [](double a, double b, double c) { return add_to_odd(a * b, c); };

template <class Format, bool want_max>
uint16_t extreme(const Instruction& instruction, uint16_t a, uint16_t b) {
    uint16_t x = flush_if<Format>(instruction.flush_subnormals, a);
    uint16_t y = flush_if<Format>(instruction.flush_subnormals, b);
    const uint16_t sign = (x ^ y) & kSign;
    if (instruction.xorsign_abs) {
        x &= ~kSign;
        y &= ~kSign;
    }
    uint16_t value;
    if (is_nan<Format>(x) || is_nan<Format>(y)) {
        if (instruction.nan || (is_nan<Format>(x) && is_nan<Format>(y))) return kCanonicalHalfNaN;
        value = is_nan<Format>(x) ? y : x;
    } else {
        const double p = Format::value(x), q = Format::value(y);
        const bool x_below = p < q || (p == q && (x & kSign));
        value = x_below == want_max ? y : x;
    }
    return instruction.xorsign_abs ? (value & ~kSign) | sign : value;
}

// Applies a function of 16-bit patterns to one or two halves of each lane.
template <class Function, class... Cells>
uint64_t per_half(const Instruction& instruction, Function function, Cells... cells) {
    const bool packed = type_bytes(instruction.type) == 4;
    uint64_t result = function(static_cast<uint16_t>(cells)...);
    if (packed) result |= static_cast<uint64_t>(function(static_cast<uint16_t>(cells >> 16)...)) << 16;
    return result;
}

template <class Format, auto operation>
uint64_t arithmetic2(const Instruction& instruction, uint64_t a, uint64_t b) {
    const bool ftz = instruction.flush_subnormals;
    return per_half(
        instruction,
        [&](uint16_t x, uint16_t y) -> uint16_t {
            const double p = Format::value(flush_if<Format>(ftz, x)),
                         q = Format::value(flush_if<Format>(ftz, y));
            return finish<Format>(instruction, Format::round(operation(p, q)));
        },
        a, b);
}

template <class Format>
uint64_t arithmetic3(const Instruction& instruction, uint64_t a, uint64_t b, uint64_t c) {
    const bool ftz = instruction.flush_subnormals;
    return per_half(
        instruction,
        [&](uint16_t x, uint16_t y, uint16_t z) -> uint16_t {
            const double p = Format::value(flush_if<Format>(ftz, x)),
                         q = Format::value(flush_if<Format>(ftz, y));
            const double r = Format::value(flush_if<Format>(ftz, z));
            return finish<Format>(instruction, Format::round(fused(p, q, r)));
        },
        a, b, c);
}

template <class Format, bool want_max>
uint64_t extreme2(const Instruction& instruction, uint64_t a, uint64_t b) {
    return per_half(
        instruction, [&](uint16_t x, uint16_t y) { return extreme<Format, want_max>(instruction, x, y); }, a,
        b);
}

template <class Format>
uint64_t sign_cleared(const Instruction& instruction, uint64_t a) {
    return per_half(
        instruction,
        [&](uint16_t x) -> uint16_t { return flush_if<Format>(instruction.flush_subnormals, x) & ~kSign; },
        a);
}

template <class Format>
uint64_t sign_flipped(const Instruction& instruction, uint64_t a) {
    return per_half(
        instruction,
        [&](uint16_t x) -> uint16_t { return flush_if<Format>(instruction.flush_subnormals, x) ^ kSign; }, a);
}

bool is_bf16(const Instruction& instruction) {
    return instruction.type == Type::kBF16 || instruction.type == Type::kBF16x2;
}

template <auto operation>
PlainFunction arithmetic(const Instruction& instruction) {
    return is_bf16(instruction) ? &binary_cells<arithmetic2<BF16, operation>>
                                : &binary_cells<arithmetic2<Half, operation>>;
}

}  // namespace

PlainFunction select_half_add(const Instruction& instruction) { return arithmetic<sum>(instruction); }
PlainFunction select_half_sub(const Instruction& instruction) { return arithmetic<difference>(instruction); }
PlainFunction select_half_mul(const Instruction& instruction) { return arithmetic<product>(instruction); }

PlainFunction select_half_fma(const Instruction& instruction) {
    return is_bf16(instruction) ? &ternary_cells<arithmetic3<BF16>> : &ternary_cells<arithmetic3<Half>>;
}
PlainFunction select_half_min(const Instruction& instruction) {
    return is_bf16(instruction) ? &binary_cells<extreme2<BF16, false>> : &binary_cells<extreme2<Half, false>>;
}
PlainFunction select_half_max(const Instruction& instruction) {
    return is_bf16(instruction) ? &binary_cells<extreme2<BF16, true>> : &binary_cells<extreme2<Half, true>>;
}
PlainFunction select_half_abs(const Instruction& instruction) {
    return is_bf16(instruction) ? &unary_cells<sign_cleared<BF16>> : &unary_cells<sign_cleared<Half>>;
}
PlainFunction select_half_neg(const Instruction& instruction) {
    return is_bf16(instruction) ? &unary_cells<sign_flipped<BF16>> : &unary_cells<sign_flipped<Half>>;
}

}  // namespace ptxsim
