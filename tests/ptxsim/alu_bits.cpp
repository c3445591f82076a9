// Logic, shifts and bit fields.
#include <algorithm>

#include "alu.h"
#include "alu_lanes.h"

namespace ptxsim {
namespace {

constexpr auto bit_and = []<class T>(T a, T b) { return static_cast<T>(a & b); };
constexpr auto bit_or = []<class T>(T a, T b) { return static_cast<T>(a | b); };
constexpr auto bit_xor = []<class T>(T a, T b) { return static_cast<T>(a ^ b); };
constexpr auto bit_not = []<class T>(T a) { return static_cast<T>(~a); };
constexpr auto predicate_not = [](uint64_t a) { return static_cast<uint64_t>(~a & 1); };

template <auto operation>
PlainFunction logic(const Instruction& instruction) {
    if (instruction.type == Type::kPred) return &binary<uint64_t, operation>;
    return integer_binary<operation>(instruction.type);
}

// The amount is 32 bits wide whatever the type, and an amount beyond the width shifts everything out.
template <class T>
void shift_left(const Instruction& instruction, uint64_t* registers, uint32_t mask) {
    const uint64_t* a = row(registers, instruction.inputs[0]);
    const uint64_t* amount = row(registers, instruction.inputs[1]);
    uint64_t* result = row(registers, instruction.outputs[0]);
    for_lanes(mask, [=](int lane) {
        const auto n = static_cast<uint32_t>(amount[lane]);
        result[lane] = n >= 8 * sizeof(T) ? 0 : static_cast<T>(a[lane] << n);
    });
}

template <class T>
void shift_right(const Instruction& instruction, uint64_t* registers, uint32_t mask) {
    const uint64_t* a = row(registers, instruction.inputs[0]);
    const uint64_t* amount = row(registers, instruction.inputs[1]);
    uint64_t* result = row(registers, instruction.outputs[0]);
    constexpr uint32_t kBits = 8 * sizeof(T);
    for_lanes(mask, [=](int lane) {
        const auto n = static_cast<uint32_t>(amount[lane]);
        const T value = from_cell<T>(a[lane]);
        if constexpr (std::is_signed_v<T>)
            result[lane] = to_cell(static_cast<T>(value >> std::min(n, kBits - 1)));
        else
            result[lane] = n >= kBits ? 0 : static_cast<T>(value >> n);
    });
}

// The upper or lower word of the 64-bit value b:a after a shift.
uint64_t funnel_shift(const Instruction& instruction, uint64_t a, uint64_t b, uint64_t c) {
    const uint64_t pair = static_cast<uint32_t>(a) | b << 32;
    const auto amount = static_cast<uint32_t>(c);
    const uint32_t n = instruction.wrap ? amount & 31 : std::min(amount, 32u);
    return instruction.right ? static_cast<uint32_t>(pair >> n) : static_cast<uint32_t>((pair << n) >> 32);
}

// Bit k of the table is the result where the three operands' bits spell k.
void lookup3(const Instruction& instruction, uint64_t* registers, uint32_t mask) {
    const uint64_t* a = row(registers, instruction.inputs[0]);
    const uint64_t* b = row(registers, instruction.inputs[1]);
    const uint64_t* c = row(registers, instruction.inputs[2]);
    uint64_t* result = row(registers, instruction.outputs[0]);
    uint32_t chosen[8];
    for (int k = 0; k < 8; ++k) chosen[k] = instruction.immediates[0] >> k & 1 ? ~0u : 0;
    for_lanes(mask, [=](int lane) {
        const auto x = static_cast<uint32_t>(a[lane]), y = static_cast<uint32_t>(b[lane]);
        const auto z = static_cast<uint32_t>(c[lane]);
        const uint32_t without_x =
            (chosen[0] & ~y & ~z) | (chosen[1] & ~y & z) | (chosen[2] & y & ~z) | (chosen[3] & y & z);
        const uint32_t with_x =
            (chosen[4] & ~y & ~z) | (chosen[5] & ~y & z) | (chosen[6] & y & ~z) | (chosen[7] & y & z);
        result[lane] = (x & with_x) | (~x & without_x);
    });
}

// The selector of each result byte in the six special modes: byte numbers 0 to 7 over b:a, for c's two low
// bits.
uint32_t permute_selectors(PermuteMode mode, uint32_t control) {
    const uint32_t n = control & 3;
    uint32_t selectors = 0;
    for (uint32_t i = 0; i < 4; ++i) {
        uint32_t byte = 0;
        switch (mode) {
            case PermuteMode::kIndex:
                return control;
            case PermuteMode::kForward4:
                byte = n + i;
                break;
            case PermuteMode::kBackward4:
                byte = (n - i) & 7;
                break;
            case PermuteMode::kReplicate8:
                byte = n;
                break;
            case PermuteMode::kEdgeLeft:
                byte = std::max(n, i);
                break;
            case PermuteMode::kEdgeRight:
                byte = std::min(n, i);
                break;
            case PermuteMode::kReplicate16:
                byte = (n & 1) * 2 + (i & 1);
                break;
        }
        selectors |= byte << (4 * i);
    }
    return selectors;
}

uint64_t permute_bytes(const Instruction& instruction, uint64_t a, uint64_t b, uint64_t c) {
    const uint64_t pair = static_cast<uint32_t>(a) | b << 32;
    const uint32_t selectors = permute_selectors(instruction.permute, static_cast<uint32_t>(c));
    uint64_t result = 0;
    for (int i = 0; i < 4; ++i) {
        const uint32_t selector = selectors >> (4 * i);
        uint64_t byte = pair >> (8 * (selector & 7)) & 0xff;
        if (selector & 8) byte = byte & 0x80 ? 0xff : 0;  // its sign, replicated
        result |= byte << (8 * i);
    }
    return result;
}

constexpr auto population = []<class T>(T a) { return static_cast<uint32_t>(std::popcount(a)); };
constexpr auto leading_zeros = []<class T>(T a) { return static_cast<uint32_t>(std::countl_zero(a)); };

constexpr auto reversed = []<class T>(T a) {
    T result = 0;
    for (size_t i = 0; i < 8 * sizeof(T); ++i) result = static_cast<T>(result << 1 | (a >> i & 1));
    return result;
};

// The highest bit that differs from the sign, or all ones where there is none.
template <class T>
uint64_t find_leading(const Instruction& instruction, uint64_t cell) {
    using Bits = std::make_unsigned_t<T>;
    const T value = from_cell<T>(cell);
    const Bits bits = static_cast<Bits>(std::is_signed_v<T> && value < 0 ? ~value : value);
    if (bits == 0) return 0xffffffff;
    const int zeros = std::countl_zero(bits);
    return static_cast<uint64_t>(instruction.shift_amount ? zeros
                                                          : static_cast<int>(8 * sizeof(T)) - 1 - zeros);
}

// `length` bits from `position`; beyond the top of the register they are copies of the sign bit, which is bit
// position + length - 1, or the highest bit if that lies outside.
template <class T>
uint64_t extract_field(const Instruction&, uint64_t cell, uint64_t position_cell, uint64_t length_cell) {
    constexpr uint32_t kTop = 8 * sizeof(T) - 1;
    const uint32_t position = position_cell & 0xff, length = length_cell & 0xff;
    if (length == 0) return 0;
    const uint64_t value = to_cell(from_cell<T>(cell));
    const bool sign = std::is_signed_v<T> && (value >> std::min(position + length - 1, kTop) & 1);
    const uint32_t held =
        position > kTop ? 0 : std::min(length, kTop + 1 - position);  // bits of the register
    const uint64_t ones = held == 64 ? ~0ull : (1ull << held) - 1;
    const uint64_t field = held == 0 ? 0 : value >> position & ones;
    return to_cell(static_cast<T>(sign ? field | ~ones : field));
}

// The low `length` bits of a, put into b at `position`.
template <class T>
void insert_field(const Instruction& instruction, uint64_t* registers, uint32_t mask) {
    const uint64_t* a = row(registers, instruction.inputs[0]);
    const uint64_t* b = row(registers, instruction.inputs[1]);
    const uint64_t* positions = row(registers, instruction.inputs[2]);
    const uint64_t* lengths = row(registers, instruction.inputs[3]);
    uint64_t* result = row(registers, instruction.outputs[0]);
    for_lanes(mask, [=](int lane) {
        const uint32_t position = positions[lane] & 0xff, length = lengths[lane] & 0xff;
        const uint64_t ones = length >= 64 ? ~0ull : (1ull << length) - 1;
        const uint64_t field = position >= 64 ? 0 : ones << position;
        const uint64_t inserted = position >= 64 ? 0 : a[lane] << position;
        result[lane] = to_cell(static_cast<T>((b[lane] & ~field) | (inserted & field)));
    });
}

}  // namespace

PlainFunction select_and(const Instruction& instruction) { return logic<bit_and>(instruction); }
PlainFunction select_or(const Instruction& instruction) { return logic<bit_or>(instruction); }
PlainFunction select_xor(const Instruction& instruction) { return logic<bit_xor>(instruction); }

PlainFunction select_not(const Instruction& instruction) {
    if (instruction.type == Type::kPred) return &unary<uint64_t, predicate_not>;
    return integer_unary<bit_not>(instruction.type);
}

PlainFunction select_shl(const Instruction& instruction) {
    const int bytes = type_bytes(instruction.type);
    return bytes == 2 ? &shift_left<uint16_t> : bytes == 4 ? &shift_left<uint32_t> : &shift_left<uint64_t>;
}

PlainFunction select_shr(const Instruction& instruction) {
    const int bytes = type_bytes(instruction.type);
    if (type_is_signed(instruction.type))
        return bytes == 2   ? &shift_right<int16_t>
               : bytes == 4 ? &shift_right<int32_t>
                            : &shift_right<int64_t>;
    return bytes == 2 ? &shift_right<uint16_t> : bytes == 4 ? &shift_right<uint32_t> : &shift_right<uint64_t>;
}

PlainFunction select_shf(const Instruction&) { return &ternary_cells<funnel_shift>; }
PlainFunction select_lop3(const Instruction&) { return &lookup3; }
PlainFunction select_prmt(const Instruction&) { return &ternary_cells<permute_bytes>; }

PlainFunction select_popc(const Instruction& instruction) {
    return type_bytes(instruction.type) == 8 ? &unary<uint64_t, population> : &unary<uint32_t, population>;
}

PlainFunction select_clz(const Instruction& instruction) {
    return type_bytes(instruction.type) == 8 ? &unary<uint64_t, leading_zeros>
                                             : &unary<uint32_t, leading_zeros>;
}

PlainFunction select_bfind(const Instruction& instruction) {
    switch (instruction.type) {
        case Type::kU32:
            return &unary_cells<find_leading<uint32_t>>;
        case Type::kS32:
            return &unary_cells<find_leading<int32_t>>;
        case Type::kU64:
            return &unary_cells<find_leading<uint64_t>>;
        case Type::kS64:
            return &unary_cells<find_leading<int64_t>>;
        default:
            return nullptr;
    }
}

PlainFunction select_brev(const Instruction& instruction) {
    return type_bytes(instruction.type) == 8 ? &unary<uint64_t, reversed> : &unary<uint32_t, reversed>;
}

PlainFunction select_bfe(const Instruction& instruction) {
    switch (instruction.type) {
        case Type::kU32:
            return &ternary_cells<extract_field<uint32_t>>;
        case Type::kS32:
            return &ternary_cells<extract_field<int32_t>>;
        case Type::kU64:
            return &ternary_cells<extract_field<uint64_t>>;
        case Type::kS64:
            return &ternary_cells<extract_field<int64_t>>;
        default:
            return nullptr;
    }
}

PlainFunction select_bfi(const Instruction& instruction) {
    return type_bytes(instruction.type) == 8 ? &insert_field<uint64_t> : &insert_field<uint32_t>;
}

}  // namespace ptxsim
