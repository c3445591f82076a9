// Multi-word arithmetic: the instructions that write the carry (.cc) or add it (addc, subc, madc). The carry
// flag is a slot like any register: the last input of those that read it, the second output of those that
// write it.
#include "alu.h"
#include "alu_lanes.h"

namespace ptxsim {
namespace {

enum class Operation : uint8_t { kAdd, kSubtract, kLowMultiplyAdd, kHighMultiplyAdd };

template <class T, Operation operation>
void with_carry(const Instruction& instruction, uint64_t* registers, uint32_t mask) {
    using Bits = std::make_unsigned_t<T>;
    using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    constexpr bool kMultiplies = operation >= Operation::kLowMultiplyAdd;
    constexpr size_t kOperands = kMultiplies ? 3 : 2;
    const uint64_t* a = row(registers, instruction.inputs[0]);
    const uint64_t* b = row(registers, instruction.inputs[1]);
    const uint64_t* c = kMultiplies ? row(registers, instruction.inputs[2]) : nullptr;
    const bool reads = instruction.inputs.size() > kOperands, writes = instruction.outputs.size() > 1;
    const uint64_t* carry_in = reads ? row(registers, instruction.inputs[kOperands]) : nullptr;
    uint64_t* carry_out = writes ? row(registers, instruction.outputs[1]) : nullptr;
    uint64_t* result = row(registers, instruction.outputs[0]);
    for_lanes(mask, [&](int lane) {
        auto x = static_cast<Bits>(a[lane]), y = static_cast<Bits>(b[lane]);
        if constexpr (kMultiplies) {
            const Wide product = static_cast<Wide>(from_cell<T>(a[lane])) * from_cell<T>(b[lane]);
            const int shift = operation == Operation::kHighMultiplyAdd ? 8 * sizeof(T) : 0;
            x = static_cast<Bits>(product >> shift);
            y = static_cast<Bits>(c[lane]);
        }
        const Bits carry = reads ? carry_in[lane] & 1 : 0;
        constexpr bool kSubtracts = operation == Operation::kSubtract;
        const Bits partial = kSubtracts ? x - y : x + y;
        const Bits total = kSubtracts ? partial - carry : partial + carry;
        const bool carries = kSubtracts ? x < y || partial < carry : partial < x || total < partial;
        result[lane] = total;
        if (writes) carry_out[lane] = carries;
    });
}

template <Operation operation>
PlainFunction instance(Type type) {
    switch (type) {
        case Type::kU32:
            return &with_carry<uint32_t, operation>;
        case Type::kS32:
            return &with_carry<int32_t, operation>;
        case Type::kU64:
            return &with_carry<uint64_t, operation>;
        case Type::kS64:
            return &with_carry<int64_t, operation>;
        default:
            return nullptr;
    }
}

}  // namespace

PlainFunction select_carry_add(const Instruction& instruction) {
    return instance<Operation::kAdd>(instruction.type);
}

PlainFunction select_carry_sub(const Instruction& instruction) {
    return instance<Operation::kSubtract>(instruction.type);
}

PlainFunction select_carry_mad(const Instruction& instruction) {
    return instruction.part == MulPart::kLow ? instance<Operation::kLowMultiplyAdd>(instruction.type)
                                             : instance<Operation::kHighMultiplyAdd>(instruction.type);
}

}  // namespace ptxsim
