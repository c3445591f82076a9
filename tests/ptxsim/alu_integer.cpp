// Integer arithmetic: two's complement, wrapping, as PTX defines it.
#include <algorithm>
#include <limits>

#include "alu.h"
#include "alu_lanes.h"
#include "fault.h"

namespace ptxsim {
namespace {

template <class T>
using Unsigned = std::make_unsigned_t<T>;

// Arithmetic on the unsigned type wraps; uint16_t would be promoted to int, whose overflow is undefined.
constexpr auto wrapping_add = []<class T>(T a, T b) {
    return static_cast<T>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
};
constexpr auto wrapping_sub = []<class T>(T a, T b) {
    return static_cast<T>(static_cast<uint64_t>(a) - static_cast<uint64_t>(b));
};
constexpr auto low_product = []<class T>(T a, T b) {
    return static_cast<T>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
};

template <class T>
using Twice = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;

constexpr auto high_product = []<class T>(T a, T b) {
    return static_cast<T>(static_cast<Twice<T>>(a) * b >> (8 * sizeof(T)));
};

// The product of two 16- or 32-bit values at twice the width.
constexpr auto wide_product = []<class T>(T a, T b) {
    if constexpr (sizeof(T) == 2) {
        using Wide = std::conditional_t<std::is_signed_v<T>, int32_t, uint32_t>;
        return static_cast<Wide>(static_cast<Wide>(a) * static_cast<Wide>(b));
    } else {
        using Wide = std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>;
        return static_cast<Wide>(static_cast<Wide>(a) * static_cast<Wide>(b));
    }
};

constexpr auto low_multiply_add = []<class T>(T a, T b, T c) { return wrapping_add(low_product(a, b), c); };
constexpr auto high_multiply_add = []<class T>(T a, T b, T c) { return wrapping_add(high_product(a, b), c); };

int32_t saturate(int64_t value) {
    return static_cast<int32_t>(
        std::clamp<int64_t>(value, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()));
}

constexpr auto saturating_add = [](int32_t a, int32_t b) { return saturate(int64_t{a} + b); };
constexpr auto saturating_sub = [](int32_t a, int32_t b) { return saturate(int64_t{a} - b); };
constexpr auto saturating_high_multiply_add = [](int32_t a, int32_t b, int32_t c) {
    return saturate((int64_t{a} * b >> 32) + c);
};

// The hardware's result is unspecified, so a division by zero is an error of the kernel.
constexpr auto quotient = []<class T>(T a, T b) {
    if (b == 0) throw Fault("DIV0", "integer division by zero");
    if constexpr (std::is_signed_v<T>)
        if (b == -1) return wrapping_sub(T{0}, a);
    return static_cast<T>(a / b);
};
constexpr auto remainder = []<class T>(T a, T b) {
    if (b == 0) throw Fault("DIV0", "integer remainder by zero");
    if constexpr (std::is_signed_v<T>)
        if (b == -1) return T{0};
    return static_cast<T>(a % b);
};

constexpr auto minimum = []<class T>(T a, T b) { return a < b ? a : b; };
constexpr auto maximum = []<class T>(T a, T b) { return a > b ? a : b; };
constexpr auto negative = []<class T>(T a) { return wrapping_sub(T{0}, a); };
constexpr auto magnitude = []<class T>(T a) { return a < 0 ? wrapping_sub(T{0}, a) : a; };
constexpr auto absolute_difference_sum = []<class T>(T a, T b, T c) {
    return wrapping_add(c, a < b ? wrapping_sub(b, a) : wrapping_sub(a, b));
};

template <class T>
void multiply_add_wide(const Instruction& instruction, uint64_t* registers, uint32_t mask) {
    const uint64_t* a = row(registers, instruction.inputs[0]);
    const uint64_t* b = row(registers, instruction.inputs[1]);
    const uint64_t* c = row(registers, instruction.inputs[2]);
    uint64_t* result = row(registers, instruction.outputs[0]);
    using Wide = decltype(wide_product(T{}, T{}));
    for_lanes(mask, [=](int lane) {
        const Wide product = wide_product(from_cell<T>(a[lane]), from_cell<T>(b[lane]));
        result[lane] = to_cell(wrapping_add(product, from_cell<Wide>(c[lane])));
    });
}

// The dot product of four bytes each, plus c; `type` and `source_type` give the signs of a's and b's bytes.
uint64_t dot_of_bytes(const Instruction& instruction, uint64_t a, uint64_t b, uint64_t c) {
    const auto byte = [](uint64_t cell, int index, Type type) -> int64_t {
        const auto bits = static_cast<uint8_t>(cell >> (8 * index));
        return type == Type::kS32 ? static_cast<int8_t>(bits) : bits;
    };
    int64_t sum = static_cast<int64_t>(c);
    for (int i = 0; i < 4; ++i) sum += byte(a, i, instruction.type) * byte(b, i, instruction.source_type);
    return static_cast<uint32_t>(sum);
}

}  // namespace

PlainFunction select_integer_add(const Instruction& instruction) {
    if (instruction.saturate) return &binary<int32_t, saturating_add>;
    return integer_binary<wrapping_add>(instruction.type);
}

PlainFunction select_integer_sub(const Instruction& instruction) {
    if (instruction.saturate) return &binary<int32_t, saturating_sub>;
    return integer_binary<wrapping_sub>(instruction.type);
}

PlainFunction select_integer_mul(const Instruction& instruction) {
    switch (instruction.part) {
        case MulPart::kLow:
            return integer_binary<low_product>(instruction.type);
        case MulPart::kHigh:
            return integer_binary<high_product>(instruction.type);
        case MulPart::kWide:
            return type_bytes(instruction.type) == 8 ? nullptr
                                                     : integer_binary<wide_product>(instruction.type);
    }
    return nullptr;
}

PlainFunction select_integer_mad(const Instruction& instruction) {
    if (instruction.saturate) return &ternary<int32_t, saturating_high_multiply_add>;
    if (instruction.part == MulPart::kLow) return integer_ternary<low_multiply_add>(instruction.type);
    if (instruction.part == MulPart::kHigh) return integer_ternary<high_multiply_add>(instruction.type);
    switch (instruction.type) {
        case Type::kU16:
            return &multiply_add_wide<uint16_t>;
        case Type::kS16:
            return &multiply_add_wide<int16_t>;
        case Type::kU32:
            return &multiply_add_wide<uint32_t>;
        case Type::kS32:
            return &multiply_add_wide<int32_t>;
        default:
            return nullptr;
    }
}

PlainFunction select_integer_div(const Instruction& of) { return integer_binary<quotient>(of.type); }
PlainFunction select_integer_rem(const Instruction& of) { return integer_binary<remainder>(of.type); }
PlainFunction select_integer_min(const Instruction& of) { return integer_binary<minimum>(of.type); }
PlainFunction select_integer_max(const Instruction& of) { return integer_binary<maximum>(of.type); }
PlainFunction select_integer_abs(const Instruction& of) { return integer_unary<magnitude>(of.type); }
PlainFunction select_integer_neg(const Instruction& of) { return integer_unary<negative>(of.type); }
PlainFunction select_sad(const Instruction& of) { return integer_ternary<absolute_difference_sum>(of.type); }
PlainFunction select_dp4a(const Instruction&) { return &ternary_cells<dot_of_bytes>; }

}  // namespace ptxsim
