// Comparisons and selection.
#include <cmath>

#include "alu.h"
#include "alu_float.h"
#include "alu_lanes.h"
#include "fault.h"

namespace ptxsim {
namespace {

template <class T>
bool compare_ordered(Compare compare, T a, T b) {
    switch (compare) {
        case Compare::kEq:
        case Compare::kEqu:
            return a == b;
        case Compare::kNe:
        case Compare::kNeu:
            return a != b;
        case Compare::kLt:
        case Compare::kLo:
        case Compare::kLtu:
            return a < b;
        case Compare::kLe:
        case Compare::kLs:
        case Compare::kLeu:
            return a <= b;
        case Compare::kGt:
        case Compare::kHi:
        case Compare::kGtu:
            return a > b;
        case Compare::kGe:
        case Compare::kHs:
        case Compare::kGeu:
            return a >= b;
        case Compare::kNum:
            return true;
        case Compare::kNan:
            return false;
    }
    return false;
}

bool true_if_unordered(Compare compare) {
    switch (compare) {
        case Compare::kEqu:
        case Compare::kNeu:
        case Compare::kLtu:
        case Compare::kLeu:
        case Compare::kGtu:
        case Compare::kGeu:
        case Compare::kNan:
            return true;
        default:
            return false;
    }
}

template <class T>
bool compare_values(const Instruction& instruction, uint64_t a, uint64_t b) {
    if constexpr (std::is_floating_point_v<T>) {
        const T x = flush_if(instruction.flush_subnormals, from_cell<T>(a));
        const T y = flush_if(instruction.flush_subnormals, from_cell<T>(b));
        if (std::isnan(x) || std::isnan(y)) return true_if_unordered(instruction.compare);
        return compare_ordered(instruction.compare, x, y);
    } else {
        return compare_ordered(instruction.compare, from_cell<T>(a), from_cell<T>(b));
    }
}

template <Type type>
bool compare_halves(const Instruction& instruction, uint64_t a, uint64_t b) {
    double x = cell_to_double(type, a), y = cell_to_double(type, b);
    if (std::isnan(x) || std::isnan(y)) return true_if_unordered(instruction.compare);
    constexpr double kSmallestNormal = type == Type::kF16 ? 0x1p-14 : 0x1p-126;
    if (instruction.flush_subnormals && std::fabs(x) < kSmallestNormal) x = 0;
    if (instruction.flush_subnormals && std::fabs(y) < kSmallestNormal) y = 0;
    return compare_ordered(instruction.compare, x, y);
}

using Comparison = bool (*)(const Instruction& instruction, uint64_t a, uint64_t b);

bool combine(const Instruction& instruction, bool result, uint64_t predicate_cell) {
    const bool other = (predicate_cell & 1) != (instruction.negated ? 1 : 0);
    switch (instruction.bool_op) {
        case BoolOp::kAnd:
            return result && other;
        case BoolOp::kOr:
            return result || other;
        case BoolOp::kXor:
            return result != other;
        case BoolOp::kNone:
            return result;
    }
    return result;
}

// setp: d = (a ? b) op c, and the second predicate, if any, !(a ? b) op c.
template <Comparison comparison>
void set_predicate(const Instruction& instruction, uint64_t* registers, uint32_t mask) {
    const uint64_t* a = row(registers, instruction.inputs[0]);
    const uint64_t* b = row(registers, instruction.inputs[1]);
    const bool combined = instruction.bool_op != BoolOp::kNone;
    const uint64_t* c = combined ? row(registers, instruction.inputs[2]) : nullptr;
    uint64_t* first = instruction.outputs[0] == kNoSlot ? nullptr : row(registers, instruction.outputs[0]);
    const bool two = instruction.outputs.size() > 1 && instruction.outputs[1] != kNoSlot;
    uint64_t* second = two ? row(registers, instruction.outputs[1]) : nullptr;
    for_lanes(mask, [&](int lane) {
        const bool result = comparison(instruction, a[lane], b[lane]);
        const uint64_t other = combined ? c[lane] : 0;
        if (first) first[lane] = combine(instruction, result, other);
        if (second) second[lane] = combine(instruction, !result, other);
    });
}

constexpr auto equal = [](auto a, auto b) { return a == b; };
constexpr auto unequal = [](auto a, auto b) { return a < b || a > b; };  // false for a NaN
constexpr auto less = [](auto a, auto b) { return a < b; };
constexpr auto less_equal = [](auto a, auto b) { return a <= b; };
constexpr auto greater = [](auto a, auto b) { return a > b; };
constexpr auto greater_equal = [](auto a, auto b) { return a >= b; };

// The most frequent form, one predicate from a comparison that stands alone, as a vector loop.
template <class T>
PlainFunction single_comparison(Compare compare) {
    switch (compare) {
        case Compare::kEq:
            return &binary<T, equal>;
        case Compare::kNe:
            return &binary<T, unequal>;
        case Compare::kLt:
        case Compare::kLo:
            return &binary<T, less>;
        case Compare::kLe:
        case Compare::kLs:
            return &binary<T, less_equal>;
        case Compare::kGt:
        case Compare::kHi:
            return &binary<T, greater>;
        case Compare::kGe:
        case Compare::kHs:
            return &binary<T, greater_equal>;
        default:
            return nullptr;
    }
}

template <class T>
PlainFunction predicate_of(const Instruction& instruction) {
    const bool alone = instruction.bool_op == BoolOp::kNone && instruction.outputs.size() == 1 &&
                       instruction.outputs[0] != kNoSlot && !instruction.flush_subnormals;
    if (alone)
        if (PlainFunction function = single_comparison<T>(instruction.compare)) return function;
    return &set_predicate<compare_values<T>>;
}

// set: all ones or zero (1.0f or 0.0f) by the comparison in the source type.
template <Comparison comparison>
void set_value(const Instruction& instruction, uint64_t* registers, uint32_t mask) {
    const uint64_t* a = row(registers, instruction.inputs[0]);
    const uint64_t* b = row(registers, instruction.inputs[1]);
    const uint64_t* c =
        instruction.bool_op == BoolOp::kNone ? nullptr : row(registers, instruction.inputs[2]);
    uint64_t* result = row(registers, instruction.outputs[0]);
    const uint64_t truth = instruction.type == Type::kF32 ? float_to_bits(1.0f) : 0xffffffffu;
    for_lanes(mask, [&](int lane) {
        const bool holds = comparison(instruction, a[lane], b[lane]);
        result[lane] = combine(instruction, holds, c ? c[lane] : 0) ? truth : 0;
    });
}

// set on packed halves (the comparison intrinsics of cuda_fp16.h and cuda_bf16.h): 1.0 or all ones per half.
template <Type half>
void set_halves(const Instruction& instruction, uint64_t* registers, uint32_t mask) {
    const uint64_t* a = row(registers, instruction.inputs[0]);
    const uint64_t* b = row(registers, instruction.inputs[1]);
    uint64_t* result = row(registers, instruction.outputs[0]);
    const bool packed = type_bytes(instruction.source_type) == 4;
    const bool as_float = type_is_float(instruction.type);
    const uint64_t truth = !as_float ? 0xffff : half == Type::kF16 ? 0x3c00 : 0x3f80;
    for_lanes(mask, [&](int lane) {
        uint64_t value = 0;
        for (int shift = 0; shift < (packed ? 32 : 16); shift += 16)
            if (compare_halves<half>(instruction, a[lane] >> shift & 0xffff, b[lane] >> shift & 0xffff))
                value |= truth << shift;
        result[lane] = value;
    });
}

template <class T>
void select_value(const Instruction& instruction, uint64_t* registers, uint32_t mask) {
    const uint64_t* a = row(registers, instruction.inputs[0]);
    const uint64_t* b = row(registers, instruction.inputs[1]);
    const uint64_t* predicate = row(registers, instruction.inputs[2]);
    uint64_t* result = row(registers, instruction.outputs[0]);
    const uint64_t inverted = instruction.negated;
    for_lanes(mask, [=](int lane) {
        result[lane] = static_cast<T>((predicate[lane] & 1) != inverted ? a[lane] : b[lane]);
    });
}

}  // namespace

PlainFunction select_setp(const Instruction& instruction) {
    switch (instruction.type) {
        case Type::kB16:
        case Type::kU16:
            return predicate_of<uint16_t>(instruction);
        case Type::kB32:
        case Type::kU32:
            return predicate_of<uint32_t>(instruction);
        case Type::kB64:
        case Type::kU64:
            return predicate_of<uint64_t>(instruction);
        case Type::kS16:
            return predicate_of<int16_t>(instruction);
        case Type::kS32:
            return predicate_of<int32_t>(instruction);
        case Type::kS64:
            return predicate_of<int64_t>(instruction);
        case Type::kF32:
            return predicate_of<float>(instruction);
        case Type::kF64:
            return predicate_of<double>(instruction);
        case Type::kF16:
            return &set_predicate<compare_halves<Type::kF16>>;
        case Type::kBF16:
            return &set_predicate<compare_halves<Type::kBF16>>;
        default:
            return nullptr;
    }
}

PlainFunction select_set(const Instruction& instruction) {
    switch (instruction.source_type) {
        case Type::kU32:
        case Type::kB32:
            return &set_value<compare_values<uint32_t>>;
        case Type::kS32:
            return &set_value<compare_values<int32_t>>;
        case Type::kF32:
            return &set_value<compare_values<float>>;
        case Type::kF16:
        case Type::kF16x2:
            return &set_halves<Type::kF16>;
        case Type::kBF16:
        case Type::kBF16x2:
            return &set_halves<Type::kBF16>;
        default:
            return nullptr;
    }
}

PlainFunction select_selp(const Instruction& instruction) {
    const int bytes = type_bytes(instruction.type);
    return bytes == 2   ? &select_value<uint16_t>
           : bytes == 4 ? &select_value<uint32_t>
                        : &select_value<uint64_t>;
}

}  // namespace ptxsim
