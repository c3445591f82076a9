// How an operation on values becomes a function over the lanes of a warp.
#pragma once
#include <bit>
#include <cstdint>
#include <type_traits>

#include "program.h"

namespace ptxsim {

// A full warp runs as a plain loop, which the compiler turns into vector instructions.
template <class Body>
inline __attribute__((always_inline)) void for_lanes(uint32_t mask, Body body) {
    if (mask == ~0u) {
#pragma GCC ivdep  // a result may share its slot with an operand, but then lane by lane
        for (int lane = 0; lane < kLanes; ++lane) body(lane);
    } else {
        for (; mask; mask &= mask - 1) body(std::countr_zero(mask));
    }
}

inline uint64_t* row(uint64_t* registers, Slot slot) {
    return registers + static_cast<int64_t>(slot) * kLanes;
}

// A cell holds a value's bits, zero-extended.
template <class T>
inline T from_cell(uint64_t cell) {
    if constexpr (std::is_same_v<T, float>)
        return std::bit_cast<float>(static_cast<uint32_t>(cell));
    else if constexpr (std::is_same_v<T, double>)
        return std::bit_cast<double>(cell);
    else
        return static_cast<T>(cell);
}

template <class T>
inline uint64_t to_cell(T value) {
    if constexpr (std::is_same_v<T, float>)
        return std::bit_cast<uint32_t>(value);
    else if constexpr (std::is_same_v<T, double>)
        return std::bit_cast<uint64_t>(value);
    else if constexpr (std::is_same_v<T, bool>)
        return value;
    else
        return static_cast<std::make_unsigned_t<T>>(value);
}

// operation(T...) -> any arithmetic type, on the first one, two, three or four inputs.
template <class T, auto operation>
void unary(const Instruction& instruction, uint64_t* registers, uint32_t mask) {
    const uint64_t* a = row(registers, instruction.inputs[0]);
    uint64_t* result = row(registers, instruction.outputs[0]);
    for_lanes(mask, [=](int lane) { result[lane] = to_cell(operation(from_cell<T>(a[lane]))); });
}

template <class T, auto operation>
void binary(const Instruction& instruction, uint64_t* registers, uint32_t mask) {
    const uint64_t* a = row(registers, instruction.inputs[0]);
    const uint64_t* b = row(registers, instruction.inputs[1]);
    uint64_t* result = row(registers, instruction.outputs[0]);
    for_lanes(mask, [=](int lane) {
        result[lane] = to_cell(operation(from_cell<T>(a[lane]), from_cell<T>(b[lane])));
    });
}

template <class T, auto operation>
void ternary(const Instruction& instruction, uint64_t* registers, uint32_t mask) {
    const uint64_t* a = row(registers, instruction.inputs[0]);
    const uint64_t* b = row(registers, instruction.inputs[1]);
    const uint64_t* c = row(registers, instruction.inputs[2]);
    uint64_t* result = row(registers, instruction.outputs[0]);
    for_lanes(mask, [=](int lane) {
        result[lane] =
            to_cell(operation(from_cell<T>(a[lane]), from_cell<T>(b[lane]), from_cell<T>(c[lane])));
    });
}

// operation(const Instruction&, cells...) -> cell, where the qualifiers are looked at lane by lane.
template <auto operation>
void unary_cells(const Instruction& instruction, uint64_t* registers, uint32_t mask) {
    const uint64_t* a = row(registers, instruction.inputs[0]);
    uint64_t* result = row(registers, instruction.outputs[0]);
    for_lanes(mask, [&](int lane) { result[lane] = operation(instruction, a[lane]); });
}

template <auto operation>
void binary_cells(const Instruction& instruction, uint64_t* registers, uint32_t mask) {
    const uint64_t* a = row(registers, instruction.inputs[0]);
    const uint64_t* b = row(registers, instruction.inputs[1]);
    uint64_t* result = row(registers, instruction.outputs[0]);
    for_lanes(mask, [&](int lane) { result[lane] = operation(instruction, a[lane], b[lane]); });
}

template <auto operation>
void ternary_cells(const Instruction& instruction, uint64_t* registers, uint32_t mask) {
    const uint64_t* a = row(registers, instruction.inputs[0]);
    const uint64_t* b = row(registers, instruction.inputs[1]);
    const uint64_t* c = row(registers, instruction.inputs[2]);
    uint64_t* result = row(registers, instruction.outputs[0]);
    for_lanes(mask, [&](int lane) { result[lane] = operation(instruction, a[lane], b[lane], c[lane]); });
}

// Instances by type; an integer type without sign (.b32) counts as unsigned. nullptr for other types.
template <auto operation>
PlainFunction integer_unary(Type type) {
    switch (type) {
        case Type::kB16:
        case Type::kU16:
            return &unary<uint16_t, operation>;
        case Type::kB32:
        case Type::kU32:
            return &unary<uint32_t, operation>;
        case Type::kB64:
        case Type::kU64:
            return &unary<uint64_t, operation>;
        case Type::kS16:
            return &unary<int16_t, operation>;
        case Type::kS32:
            return &unary<int32_t, operation>;
        case Type::kS64:
            return &unary<int64_t, operation>;
        default:
            return nullptr;
    }
}

template <auto operation>
PlainFunction integer_binary(Type type) {
    switch (type) {
        case Type::kB16:
        case Type::kU16:
            return &binary<uint16_t, operation>;
        case Type::kB32:
        case Type::kU32:
            return &binary<uint32_t, operation>;
        case Type::kB64:
        case Type::kU64:
            return &binary<uint64_t, operation>;
        case Type::kS16:
            return &binary<int16_t, operation>;
        case Type::kS32:
            return &binary<int32_t, operation>;
        case Type::kS64:
            return &binary<int64_t, operation>;
        default:
            return nullptr;
    }
}

template <auto operation>
PlainFunction integer_ternary(Type type) {
    switch (type) {
        case Type::kB16:
        case Type::kU16:
            return &ternary<uint16_t, operation>;
        case Type::kB32:
        case Type::kU32:
            return &ternary<uint32_t, operation>;
        case Type::kB64:
        case Type::kU64:
            return &ternary<uint64_t, operation>;
        case Type::kS16:
            return &ternary<int16_t, operation>;
        case Type::kS32:
            return &ternary<int32_t, operation>;
        case Type::kS64:
            return &ternary<int64_t, operation>;
        default:
            return nullptr;
    }
}

}  // namespace ptxsim
