// Reciprocals, roots and the transcendental functions of f32, f64 and the half types. Where the ISA names a
// rounding
// (.rn, .rz, .rm, .rp) the result is that; an approximate function gives the double-precision value of the
// host's libm rounded to the type, which is within the ISA's error bound but not the bits of any device.
#include "alu.h"
#include "alu_float.h"
#include "alu_lanes.h"

namespace ptxsim {
namespace {

constexpr auto reciprocal = [](auto a) { return 1 / a; };
constexpr auto square_root = [](auto a) { return std::sqrt(a); };

// f32 of a double-precision function of the operand.
template <auto function>
uint64_t approximate(const Instruction& instruction, uint64_t a) {
    const double x = flush_if(instruction.flush_subnormals, bits_to_float(a));
    return finish(instruction, static_cast<float>(function(x)));
}

// The same on one or two halves; bf16 results below 2^-126 are flushed where .ftz is given, f16's are not.
template <auto function>
uint64_t approximate_halves(const Instruction& instruction, uint64_t a) {
    const bool packed = instruction.type == Type::kF16x2 || instruction.type == Type::kBF16x2;
    const bool bf16 = instruction.type == Type::kBF16 || instruction.type == Type::kBF16x2;
    uint64_t result = 0;
    for (int shift = 0; shift < (packed ? 32 : 16); shift += 16) {
        const auto bits = static_cast<uint16_t>(a >> shift);
        const bool ftz = instruction.flush_subnormals && bf16;
        const double x = flush_if(ftz, bf16 ? bf16_to_float(bits) : half_to_float(bits));
        const double value = function(x);
        const uint16_t rounded_value = bf16 ? round_to_bf16(value) : round_to_half(value);
        const bool subnormal = bf16 && (rounded_value & 0x7f80) == 0;
        const uint16_t flushed = ftz && subnormal ? rounded_value & 0x8000 : rounded_value;
        result |= static_cast<uint64_t>(flushed) << shift;
    }
    return result;
}

constexpr auto exp2_of = [](double x) { return std::exp2(x); };
constexpr auto log2_of = [](double x) { return std::log2(x); };
constexpr auto sin_of = [](double x) { return std::sin(x); };
constexpr auto cos_of = [](double x) { return std::cos(x); };
constexpr auto tanh_of = [](double x) { return std::tanh(x); };
constexpr auto rsqrt_of = [](double x) { return 1 / std::sqrt(x); };

// rcp.approx.ftz.f64 and rsqrt.approx{.ftz}.f64 work on the upper 32 bits and give zeros below.
template <auto function, bool flush_input>
uint64_t upper_word(const Instruction&, uint64_t a) {
    double x = bits_to_double(a & 0xffffffff00000000ull);
    if (flush_input && std::fabs(x) < 0x1p-1022) x = std::copysign(0.0, x);
    double value = function(x);
    if (std::isnan(value)) return 0x7fffffff00000000ull;
    if (flush_input && std::fabs(value) < 0x1p-1022) value = std::copysign(0.0, value);
    return double_to_bits(value) & 0xffffffff00000000ull;
}

}  // namespace

PlainFunction select_rcp(const Instruction& instruction) {
    if (instruction.type == Type::kF32) return &qualified<float, reciprocal, 1>;
    if (instruction.approximate) return &unary_cells<upper_word<reciprocal, true>>;
    return &qualified<double, reciprocal, 1>;
}

PlainFunction select_sqrt(const Instruction& instruction) {
    return instruction.type == Type::kF32 ? &qualified<float, square_root, 1>
                                          : &qualified<double, square_root, 1>;
}

PlainFunction select_rsqrt(const Instruction& instruction) {
    if (instruction.type == Type::kF32) return &unary_cells<approximate<rsqrt_of>>;
    return instruction.flush_subnormals ? &unary_cells<upper_word<rsqrt_of, true>>
                                        : &unary_cells<upper_word<rsqrt_of, false>>;
}

PlainFunction select_sin(const Instruction&) { return &unary_cells<approximate<sin_of>>; }
PlainFunction select_cos(const Instruction&) { return &unary_cells<approximate<cos_of>>; }
PlainFunction select_lg2(const Instruction&) { return &unary_cells<approximate<log2_of>>; }

PlainFunction select_ex2(const Instruction& instruction) {
    if (instruction.type == Type::kF32) return &unary_cells<approximate<exp2_of>>;
    return &unary_cells<approximate_halves<exp2_of>>;
}

PlainFunction select_tanh(const Instruction& instruction) {
    if (instruction.type == Type::kF32) return &unary_cells<approximate<tanh_of>>;
    return &unary_cells<approximate_halves<tanh_of>>;
}

}  // namespace ptxsim
