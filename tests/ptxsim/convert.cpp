// cvt. Every conversion rounds once, from the exact source value.
#include <algorithm>
#include <cmath>
#include <limits>

#include "alu.h"
#include "alu_float.h"
#include "alu_lanes.h"
#include "fault.h"
#include "formats.h"

namespace ptxsim {
namespace {

bool is_signed_cell_negative(Type type, uint64_t cell) {
    return type_is_signed(type) && (cell >> (8 * type_bytes(type) - 1) & 1);
}

uint64_t low_bits(int bits) { return bits >= 64 ? ~0ull : (1ull << bits) - 1; }

uint64_t sign_extend(Type type, uint64_t cell) {
    const int bits = 8 * type_bytes(type);
    cell &= low_bits(bits);
    return is_signed_cell_negative(type, cell) ? cell | ~low_bits(bits) : cell;
}

// ---- integer to integer: extended by the source's sign, then cut or, with .sat, clamped to the destination.

template <class Source>
void resize(const Instruction& instruction, uint64_t* registers, uint32_t mask) {
    const uint64_t* a = row(registers, instruction.inputs[0]);
    uint64_t* result = row(registers, instruction.outputs[0]);
    // A destination register may be wider than the type: the value is extended by the destination type's
    // sign.
    const int type_bits = 8 * type_bytes(instruction.type);
    const int register_bits = std::max<int>(instruction.output_bits, type_bits);
    const uint64_t register_mask = low_bits(register_bits);
    if (type_bits == register_bits) {
        for_lanes(mask, [=](int lane) {
            result[lane] =
                static_cast<uint64_t>(static_cast<int64_t>(from_cell<Source>(a[lane]))) & register_mask;
        });
        return;
    }
    for_lanes(mask, [&](int lane) {
        const auto value = static_cast<uint64_t>(static_cast<int64_t>(from_cell<Source>(a[lane])));
        result[lane] = sign_extend(instruction.type, value) & register_mask;
    });
}

uint64_t clamp_integer(const Instruction& instruction, uint64_t cell) {
    const Type to = instruction.type, from = instruction.source_type;
    const int bits = 8 * type_bytes(to);
    const auto value = static_cast<int64_t>(sign_extend(from, cell));
    const bool negative = type_is_signed(from) && value < 0;
    const uint64_t magnitude = static_cast<uint64_t>(value);
    uint64_t clamped = magnitude;
    if (type_is_signed(to)) {
        const int64_t largest = static_cast<int64_t>(low_bits(bits - 1));
        if (negative)
            clamped = static_cast<uint64_t>(std::max(value, -largest - 1));
        else
            clamped = std::min(magnitude, static_cast<uint64_t>(largest));
    } else {
        clamped = negative ? 0 : std::min(magnitude, low_bits(bits));
    }
    return clamped & low_bits(std::max<int>(instruction.output_bits, bits));
}

// ---- floating point to integer: rounded to an integer, clamped to the destination's range.

double round_integral(double value, Rounding rounding) {
    switch (rounding) {
        case Rounding::kZero:
            return std::trunc(value);
        case Rounding::kDown:
            return std::floor(value);
        case Rounding::kUp:
            return std::ceil(value);
        default:
            return std::nearbyint(value);  // to even: the thread's rounding direction is never another here
    }
}

double source_value(const Instruction& instruction, uint64_t cell) {
    if (instruction.source_type == Type::kF32)
        return flush_if(instruction.flush_subnormals, bits_to_float(cell));
    return cell_to_double(instruction.source_type, cell);
}

uint64_t float_to_integer(const Instruction& instruction, uint64_t cell) {
    const Type to = instruction.type;
    const int bits = 8 * type_bytes(to);
    const uint64_t register_mask = low_bits(std::max<int>(instruction.output_bits, bits));
    const double value = source_value(instruction, cell);
    if (std::isnan(value)) {
        const bool wide = instruction.source_type == Type::kF64 || bits == 64;
        return wide ? sign_extend(to, 1ull << (bits - 1)) & register_mask : 0;
    }
    const double whole = round_integral(value, instruction.rounding);
    if (type_is_signed(to)) {
        const double limit = static_cast<double>(1ull << (bits - 1));
        if (whole >= limit) return low_bits(bits - 1);
        const int64_t smallest = static_cast<int64_t>(~low_bits(bits - 1));
        const int64_t result = whole < -limit ? smallest : static_cast<int64_t>(whole);
        return static_cast<uint64_t>(result) & register_mask;
    }
    if (whole <= 0) return 0;
    if (whole >= 2 * static_cast<double>(1ull << (bits - 1))) return low_bits(bits);
    return static_cast<uint64_t>(whole);
}

// ---- to floating point

const FloatFormat& format_of(Type type) {
    switch (type) {
        case Type::kF16:
        case Type::kF16x2:
            return kHalf;
        case Type::kBF16:
        case Type::kBF16x2:
            return kBF16;
        case Type::kF32:
            return kFloat;
        case Type::kF64:
            return kDouble;
        case Type::kTF32:
            return kTF32;
        case Type::kE4M3x2:
            return kE4M3;
        case Type::kE5M2x2:
            return kE5M2;
        default:
            throw Fault("INTERNAL", std::string("no format for type ") + type_name(type));
    }
}

// .sat, .ftz and .relu on a code of the destination format.
uint64_t finish_code(const Instruction& instruction, const FloatFormat& format, uint64_t code) {
    const bool negative = code & format.sign_bit();
    const bool nan = format.has_infinity ? (code & (format.sign_bit() - 1)) > format.largest_code + 1
                                         : (code & (format.sign_bit() - 1)) > format.largest_code;
    const uint64_t one = static_cast<uint64_t>(format.bias()) << format.fraction_bits;
    if (instruction.saturate) {
        if (nan || negative) return 0;
        return std::min(code, one);
    }
    if (instruction.relu && negative && !nan) return 0;
    const bool subnormal = (code & (format.sign_bit() - 1)) >> format.fraction_bits == 0;
    if (instruction.flush_subnormals && instruction.type == Type::kF32 && subnormal)
        return code & format.sign_bit();
    return code;
}

uint64_t integer_to_float(const Instruction& instruction, uint64_t cell) {
    const FloatFormat& format = format_of(instruction.type);
    const uint64_t value = sign_extend(instruction.source_type, cell);
    const bool negative = is_signed_cell_negative(instruction.source_type, cell);
    const uint64_t magnitude = negative ? 0 - value : value;
    return finish_code(instruction, format,
                       round_to_format(format, negative, magnitude, 0, instruction.rounding, false));
}

uint64_t float_code(const Instruction& instruction, double value) {
    const FloatFormat& format = format_of(instruction.type);
    const uint64_t code = round_to_format(format, value, instruction.rounding, instruction.saturate_finite);
    return finish_code(instruction, format, code);
}

uint64_t float_to_float(const Instruction& instruction, uint64_t cell) {
    double value = source_value(instruction, cell);
    if (instruction.round_to_integer && !std::isnan(value))
        value = round_integral(value, instruction.rounding);
    return float_code(instruction, value);
}

// tf32 keeps its 19 bits in the upper part of the register.
uint64_t float_to_tf32(const Instruction& instruction, uint64_t cell) {
    const float value = bits_to_float(cell);
    if (std::isnan(value)) return kCanonicalFloatNaN;
    return float_code(instruction, value) << 13;
}

// Two f32 operands to a pair; the first operand becomes the upper half.
uint64_t floats_to_pair(const Instruction& instruction, uint64_t a, uint64_t b) {
    const int width = 4 * type_bytes(instruction.type);
    return float_code(instruction, bits_to_float(a)) << width | float_code(instruction, bits_to_float(b));
}

uint64_t halves_to_bytes(const Instruction& instruction, uint64_t a) {
    return float_code(instruction, half_to_float(static_cast<uint16_t>(a >> 16))) << 8 |
           float_code(instruction, half_to_float(static_cast<uint16_t>(a)));
}

uint64_t bytes_to_halves(const Instruction& instruction, uint64_t a) {
    const auto value = [&](uint64_t byte) -> double {
        const auto code = static_cast<uint8_t>(byte);
        return instruction.source_type == Type::kE4M3x2 ? e4m3_to_float(code) : e5m2_to_float(code);
    };
    return float_code(instruction, value(a >> 8)) << 16 | float_code(instruction, value(a));
}

// The frequent cases as vector loops.
constexpr auto signed_to_float = [](int32_t a) { return static_cast<float>(a); };
constexpr auto unsigned_to_float = [](uint32_t a) { return static_cast<float>(a); };

void bf16_to_f32(const Instruction& instruction, uint64_t* registers, uint32_t mask) {
    const uint64_t* a = row(registers, instruction.inputs[0]);
    uint64_t* result = row(registers, instruction.outputs[0]);
    for_lanes(mask, [=](int lane) {
        const auto bits = static_cast<uint32_t>(a[lane]) << 16;
        result[lane] = (bits & 0x7fffffff) > 0x7f800000 ? kCanonicalFloatNaN : bits;
    });
}

// To nearest even: half of the discarded part, less a bit if the kept part is even, carries into it.
uint64_t nearest_bf16(uint64_t cell) {
    const auto bits = static_cast<uint32_t>(cell);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? kCanonicalHalfNaN : rounded;
}

void f32_to_bf16(const Instruction& instruction, uint64_t* registers, uint32_t mask) {
    const uint64_t* a = row(registers, instruction.inputs[0]);
    uint64_t* result = row(registers, instruction.outputs[0]);
    for_lanes(mask, [=](int lane) { result[lane] = nearest_bf16(a[lane]); });
}

void f32_pair_to_bf16x2(const Instruction& instruction, uint64_t* registers, uint32_t mask) {
    const uint64_t* a = row(registers, instruction.inputs[0]);
    const uint64_t* b = row(registers, instruction.inputs[1]);
    uint64_t* result = row(registers, instruction.outputs[0]);
    for_lanes(mask, [=](int lane) { result[lane] = nearest_bf16(a[lane]) << 16 | nearest_bf16(b[lane]); });
}

bool is_integer(Type type) { return type >= Type::kU8 && type <= Type::kS64; }

PlainFunction select_resize(Type source) {
    switch (source) {
        case Type::kU8:
            return &resize<uint8_t>;
        case Type::kU16:
            return &resize<uint16_t>;
        case Type::kU32:
            return &resize<uint32_t>;
        case Type::kS8:
            return &resize<int8_t>;
        case Type::kS16:
            return &resize<int16_t>;
        case Type::kS32:
            return &resize<int32_t>;
        default:
            return &resize<uint64_t>;
    }
}

}  // namespace

PlainFunction select_cvt(const Instruction& instruction) {
    const Type to = instruction.type, from = instruction.source_type;
    if (is_integer(to) && is_integer(from))
        return instruction.saturate ? &unary_cells<clamp_integer> : select_resize(from);
    if (is_integer(to)) return &unary_cells<float_to_integer>;
    const bool nearest = instruction.rounding == Rounding::kNearest && !instruction.saturate;
    const bool only_nearest =
        nearest && !instruction.flush_subnormals && !instruction.relu && !instruction.saturate_finite;
    if (is_integer(from)) {
        if (to == Type::kF32 && nearest && from == Type::kS32) return &unary<int32_t, signed_to_float>;
        if (to == Type::kF32 && nearest && from == Type::kU32) return &unary<uint32_t, unsigned_to_float>;
        return &unary_cells<integer_to_float>;
    }
    if (to == Type::kTF32) return &unary_cells<float_to_tf32>;
    if (from == Type::kE4M3x2 || from == Type::kE5M2x2) return &unary_cells<bytes_to_halves>;
    if (to == Type::kE4M3x2 || to == Type::kE5M2x2)
        return from == Type::kF32 ? &binary_cells<floats_to_pair> : &unary_cells<halves_to_bytes>;
    if (to == Type::kBF16x2 && only_nearest) return &f32_pair_to_bf16x2;
    if (to == Type::kF16x2 || to == Type::kBF16x2) return &binary_cells<floats_to_pair>;
    if (to == Type::kBF16 && from == Type::kF32 && only_nearest) return &f32_to_bf16;
    if (to == Type::kF32 && from == Type::kBF16 && !instruction.saturate && !instruction.flush_subnormals)
        return &bf16_to_f32;
    return &unary_cells<float_to_float>;
}

}  // namespace ptxsim
