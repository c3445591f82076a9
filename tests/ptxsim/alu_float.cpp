// f32 and f64 arithmetic: IEEE operations, each rounded once in the direction the instruction names.
#include "alu_float.h"

#include "alu.h"
#include "alu_lanes.h"

namespace ptxsim {
namespace {

constexpr auto sum = [](auto a, auto b) { return a + b; };
constexpr auto difference = [](auto a, auto b) { return a - b; };
constexpr auto product = [](auto a, auto b) { return a * b; };
constexpr auto quotient = [](auto a, auto b) { return a / b; };
constexpr auto fused = [](auto a, auto b, auto c) { return std::fma(a, b, c); };

// The operation with the NaN that instructions give. Without .ftz, .sat and a rounding direction, the common
// case, this is all: a loop that becomes vector instructions.
template <auto operation>
constexpr auto nearest = [](auto... values) { return result_cell(operation(values...)); };

bool is_plain_nearest(const Instruction& instruction) {
    return !is_directed(instruction.rounding) && !instruction.flush_subnormals && !instruction.saturate;
}

template <auto operation>
PlainFunction arithmetic(const Instruction& instruction) {
    const bool plain = is_plain_nearest(instruction);
    if (instruction.type == Type::kF32)
        return plain ? &binary<float, nearest<operation>> : &qualified<float, operation, 2>;
    return plain ? &binary<double, nearest<operation>> : &qualified<double, operation, 2>;
}

// div.approx: within 2 ulp on the device, here the rounded quotient; but 0 (or NaN for an infinite a) for a
// divisor from 2^126, as the ISA says.
uint64_t approximate_quotient(const Instruction& instruction, uint64_t a, uint64_t b) {
    const bool ftz = instruction.flush_subnormals;
    const float x = flush_if(ftz, bits_to_float(a)), y = flush_if(ftz, bits_to_float(b));
    if (std::fabs(y) > 0x1p126f && !std::isinf(y)) {
        if (std::isinf(x) || std::isnan(x)) return kCanonicalFloatNaN;
        return float_to_bits(std::copysign(0.0f, std::signbit(x) == std::signbit(y) ? 1.0f : -1.0f));
    }
    return finish(instruction, x / y);
}

// The larger or smaller value. A number beats a NaN, unless .NaN asks for the opposite; -0 < +0; .xorsign.abs
// compares magnitudes and gives the result the exclusive or of the signs.
template <class T, bool want_max>
uint64_t extreme(const Instruction& instruction, uint64_t a, uint64_t b) {
    const bool ftz = instruction.flush_subnormals;
    T x = flush_if(ftz, from_cell<T>(a)), y = flush_if(ftz, from_cell<T>(b));
    const bool negative = std::signbit(x) != std::signbit(y);
    if (instruction.xorsign_abs) {
        x = std::fabs(x);
        y = std::fabs(y);
    }
    T value;
    if (std::isnan(x) || std::isnan(y)) {
        if (instruction.nan || (std::isnan(x) && std::isnan(y))) return result_cell(static_cast<T>(NAN));
        value = std::isnan(x) ? y : x;
    } else {
        const bool x_below = x < y || (x == y && std::signbit(x));
        value = x_below == want_max ? y : x;
    }
    if (instruction.xorsign_abs) value = std::copysign(value, negative ? T{-1} : T{1});
    return result_cell(value);
}

// The same without qualifiers, as a vector loop: of equal operands +0 has the sign bit clear, -0 set.
constexpr auto bits_and = [](auto a, auto b) { return from_cell<decltype(a)>(to_cell(a) & to_cell(b)); };
constexpr auto bits_or = [](auto a, auto b) { return from_cell<decltype(a)>(to_cell(a) | to_cell(b)); };
constexpr auto larger = [](auto a, auto b) {
    const auto value = std::isnan(b) || a > b ? a : b;
    return a == b ? bits_and(a, b) : value;
};
constexpr auto smaller = [](auto a, auto b) {
    const auto value = std::isnan(b) || a < b ? a : b;
    return a == b ? bits_or(a, b) : value;
};

template <class T>
uint64_t sign_cleared(const Instruction& instruction, uint64_t a) {
    return to_cell(std::fabs(flush_if(instruction.flush_subnormals, from_cell<T>(a))));
}

template <class T>
uint64_t sign_flipped(const Instruction& instruction, uint64_t a) {
    return to_cell(-flush_if(instruction.flush_subnormals, from_cell<T>(a)));
}

constexpr auto sign_copied = [](auto a, auto b) { return std::copysign(b, a); };

template <class T>
uint64_t has_property(const Instruction& instruction, uint64_t a) {
    const T value = from_cell<T>(a);
    switch (instruction.test) {
        case TestProperty::kFinite:
            return std::isfinite(value);
        case TestProperty::kInfinite:
            return std::isinf(value);
        case TestProperty::kNumber:
            return !std::isnan(value);
        case TestProperty::kNotANumber:
            return std::isnan(value);
        case TestProperty::kNormal:
            return std::isnormal(value);
        case TestProperty::kSubnormal:
            return std::fpclassify(value) == FP_SUBNORMAL;
    }
    return 0;
}

bool is_f32(const Instruction& instruction) { return instruction.type == Type::kF32; }

bool is_unqualified_extreme(const Instruction& instruction) {
    return !instruction.flush_subnormals && !instruction.nan && !instruction.xorsign_abs;
}

}  // namespace

PlainFunction select_float_add(const Instruction& instruction) { return arithmetic<sum>(instruction); }
PlainFunction select_float_sub(const Instruction& instruction) { return arithmetic<difference>(instruction); }
PlainFunction select_float_mul(const Instruction& instruction) { return arithmetic<product>(instruction); }

PlainFunction select_float_fma(const Instruction& instruction) {
    const bool plain = is_plain_nearest(instruction);
    if (is_f32(instruction)) return plain ? &ternary<float, nearest<fused>> : &qualified<float, fused, 3>;
    return plain ? &ternary<double, nearest<fused>> : &qualified<double, fused, 3>;
}

// div.full: within 2 ulp on the device, here the rounded quotient.
PlainFunction select_float_div(const Instruction& instruction) {
    if (instruction.approximate) return &binary_cells<approximate_quotient>;
    return arithmetic<quotient>(instruction);
}

PlainFunction select_float_min(const Instruction& instruction) {
    if (!is_f32(instruction)) return &binary<double, nearest<smaller>>;
    return is_unqualified_extreme(instruction) ? &binary<float, nearest<smaller>>
                                               : &binary_cells<extreme<float, false>>;
}
PlainFunction select_float_max(const Instruction& instruction) {
    if (!is_f32(instruction)) return &binary<double, nearest<larger>>;
    return is_unqualified_extreme(instruction) ? &binary<float, nearest<larger>>
                                               : &binary_cells<extreme<float, true>>;
}
PlainFunction select_float_abs(const Instruction& instruction) {
    return is_f32(instruction) ? &unary_cells<sign_cleared<float>> : &unary_cells<sign_cleared<double>>;
}
PlainFunction select_float_neg(const Instruction& instruction) {
    return is_f32(instruction) ? &unary_cells<sign_flipped<float>> : &unary_cells<sign_flipped<double>>;
}
PlainFunction select_copysign(const Instruction& instruction) {
    return is_f32(instruction) ? &binary<float, sign_copied> : &binary<double, sign_copied>;
}
PlainFunction select_testp(const Instruction& instruction) {
    return is_f32(instruction) ? &unary_cells<has_property<float>> : &unary_cells<has_property<double>>;
}

}  // namespace ptxsim
