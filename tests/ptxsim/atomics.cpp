// atom and red. The lanes of one instruction act in a random order.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "execute.h"
#include "formats.h"

namespace ptxsim {
namespace {

int64_t sign_extend(uint64_t value, int bytes) {
    const int unused = 64 - 8 * bytes;
    return static_cast<int64_t>(value << unused) >> unused;
}

// The new value of an element that holds `old`; b and c are the operands.
uint64_t update(Machine& machine, const Instruction& instruction, uint64_t old, uint64_t b, uint64_t c) {
    const Type type = instruction.type;
    const int bytes = instruction.element_bytes;
    const bool is_signed = type_is_signed(type), is_float = type_is_float(type);
    auto less = [&](uint64_t x, uint64_t y) {
        return is_signed ? sign_extend(x, bytes) < sign_extend(y, bytes) : x < y;
    };
    switch (instruction.atomic) {
        case AtomicOp::kAdd:
            return is_float ? float_add(type, old, b) : old + b;
        case AtomicOp::kMin:
            if (is_float) return float_min(type, old, b);
            return less(b, old) ? b : old;
        case AtomicOp::kMax:
            if (is_float) return float_max(type, old, b);
            return less(old, b) ? b : old;
        case AtomicOp::kAnd:
            return old & b;
        case AtomicOp::kOr:
            return old | b;
        case AtomicOp::kXor:
            return old ^ b;
        case AtomicOp::kExchange:
            return b;
        case AtomicOp::kCompareSwap:
            return old == b ? c : old;
        case AtomicOp::kIncrement:
            return old >= b ? 0 : old + 1;
        case AtomicOp::kDecrement:
            return old == 0 || old > b ? b : old - 1;
    }
    machine.fail("UNSUPPORTED", "atomic operation");
}

}  // namespace

int Machine::shuffled_lanes(uint32_t mask, std::array<uint8_t, kLanes>& order) {
    int count = 0;
    for (; mask; mask &= mask - 1) order[count++] = static_cast<uint8_t>(std::countr_zero(mask));
    for (int i = count - 1; i > 0; --i) std::swap(order[i], order[random(static_cast<uint64_t>(i) + 1)]);
    return count;
}

Outcome run_atomic(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) {
    const Address& target = instruction.addresses[0];
    const uint64_t* base = machine.values(warp, target.base, mask);
    const size_t vector = instruction.vector, element = instruction.element_bytes;
    const bool swaps = instruction.atomic == AtomicOp::kCompareSwap;
    for (Slot slot : instruction.inputs) machine.require_defined(warp, slot, mask);
    Touch touch;
    touch.space = instruction.space;
    touch.bytes = static_cast<uint32_t>(element * vector);
    touch.write = true;
    touch.access.actor = warp.actor;
    touch.access.tick = warp.now;
    touch.access.atomic = true;
    touch.access.scope = instruction.scope == Scope::kNone ? Scope::kGpu : instruction.scope;

    std::array<uint8_t, kLanes> order;
    std::array<uint64_t, kLanes> addresses{};
    const int count = machine.shuffled_lanes(mask, order);
    const uint64_t bits = element == 8 ? ~uint64_t{0} : (uint64_t{1} << (8 * element)) - 1;
    Buffer* buffer = nullptr;
    for (int i = 0; i < count; ++i) {
        const int lane = order[i];
        const uint64_t address = base[lane] + static_cast<uint64_t>(target.offset);
        addresses[lane] = address;
        uint8_t* bytes = machine.touch(warp, touch, lane, address, nullptr, buffer);
        for (size_t j = 0; j < vector; ++j) {
            uint64_t old = 0;
            std::memcpy(&old, bytes + element * j, element);
            const uint64_t b = warp.lanes(instruction.inputs[j])[lane] & bits;
            const uint64_t c = swaps ? warp.lanes(instruction.inputs[vector + j])[lane] & bits : 0;
            const uint64_t result = update(machine, instruction, old, b, c);
            std::memcpy(bytes + element * j, &result, element);
            if (j < instruction.outputs.size() && instruction.outputs[j] != kNoSlot) {
                warp.lanes(instruction.outputs[j])[lane] = old;
            }
        }
        machine.synchronise_through(warp, lane, instruction.space, address, instruction, true, true);
    }
    warp.tick();
    for (Slot slot : instruction.outputs) {
        if (slot != kNoSlot) warp.set_defined(slot, mask);
    }
    uint64_t first = addresses[std::countr_zero(mask)];
    if (Machine::resolve(instruction.space, first) == Space::kGlobal) {
        count_global(machine.counters(warp).global_atomic, addresses.data(), mask, touch.bytes);
    }
    if (machine.random(4) == 0) {  // an atomic may be a poll: let the others run now and then
        for (uint32_t rest = mask; rest; rest &= rest - 1) ++warp.pc[std::countr_zero(rest)];
        return Outcome::kYield;
    }
    return Outcome::kAdvance;
}

}  // namespace ptxsim
