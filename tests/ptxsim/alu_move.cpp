// mov in its scalar, packing and unpacking forms, and the address-space instructions.
#include "alu.h"
#include "alu_lanes.h"

namespace ptxsim {
namespace {

template <class T>
void copy(const Instruction& instruction, uint64_t* registers, uint32_t mask) {
    const uint64_t* a = row(registers, instruction.inputs[0]);
    uint64_t* result = row(registers, instruction.outputs[0]);
    for_lanes(mask, [=](int lane) { result[lane] = static_cast<T>(a[lane]); });
}

uint64_t low_bits(int bits) { return bits >= 64 ? ~0ull : (1ull << bits) - 1; }

// One register into several of equal width, the lowest bits first.
void unpack(const Instruction& instruction, uint64_t* registers, uint32_t mask) {
    const uint64_t* a = row(registers, instruction.inputs[0]);
    const int width = 8 * type_bytes(instruction.type) / static_cast<int>(instruction.outputs.size());
    uint64_t source[kLanes];  // an output may be the input's register
    for_lanes(mask, [&](int lane) { source[lane] = a[lane]; });
    int shift = 0;
    for (const Slot slot : instruction.outputs) {
        if (slot != kNoSlot) {
            uint64_t* result = row(registers, slot);
            for_lanes(mask, [&](int lane) { result[lane] = source[lane] >> shift & low_bits(width); });
        }
        shift += width;
    }
}

void pack(const Instruction& instruction, uint64_t* registers, uint32_t mask) {
    const int width = 8 * type_bytes(instruction.type) / static_cast<int>(instruction.inputs.size());
    uint64_t packed[kLanes] = {};
    int shift = 0;
    for (const Slot slot : instruction.inputs) {
        const uint64_t* part = row(registers, slot);
        for_lanes(mask, [&](int lane) { packed[lane] |= (part[lane] & low_bits(width)) << shift; });
        shift += width;
    }
    uint64_t* result = row(registers, instruction.outputs[0]);
    for_lanes(mask, [&](int lane) { result[lane] = packed[lane]; });
}

void set_zero(const Instruction& instruction, uint64_t* registers, uint32_t mask) {
    uint64_t* result = row(registers, instruction.outputs[0]);
    for_lanes(mask, [=](int lane) { result[lane] = 0; });
}

uint64_t window_of(Space space) {
    switch (space) {
        case Space::kShared:
        case Space::kSharedCluster:
            return kSharedWindow;
        case Space::kLocal:
            return kLocalWindow;
        case Space::kParam:
            return kParamWindow;
        default:
            return 0;  // global and constant addresses are generic ones
    }
}

uint64_t to_generic(const Instruction& instruction, uint64_t address) {
    const uint64_t window = window_of(instruction.space);
    return window == 0 ? address : window | static_cast<uint32_t>(address);
}

uint64_t from_generic(const Instruction& instruction, uint64_t address) {
    return window_of(instruction.space) == 0 ? address : static_cast<uint32_t>(address);
}

// An address is in no window, hence global, unless its top byte says otherwise.
uint64_t is_in_space(const Instruction& instruction, uint64_t address) {
    const uint64_t window = address & kWindowMask;
    const bool windowed = window == kSharedWindow || window == kLocalWindow || window == kParamWindow;
    const uint64_t wanted = window_of(instruction.space);
    return wanted == 0 ? !windowed : window == wanted;
}

}  // namespace

PlainFunction select_mov(const Instruction& instruction) {
    if (instruction.outputs.size() > 1) return &unpack;
    if (instruction.inputs.size() > 1) return &pack;
    switch (type_bytes(instruction.type)) {
        case 1:
            return &copy<uint8_t>;  // a predicate
        case 2:
            return &copy<uint16_t>;
        case 4:
            return &copy<uint32_t>;
        default:
            return &copy<uint64_t>;
    }
}

PlainFunction select_zero(const Instruction&) { return &set_zero; }

PlainFunction select_cvta(const Instruction& instruction) {
    return instruction.to_space ? &unary_cells<from_generic> : &unary_cells<to_generic>;
}

PlainFunction select_isspacep(const Instruction&) { return &unary_cells<is_in_space>; }

}  // namespace ptxsim
