// ld and st in every space and width.
#include <array>
#include <bit>
#include <cstring>

#include "execute.h"

namespace ptxsim {
namespace {

bool is_strong(Semantics semantics) { return semantics != Semantics::kWeak; }

// A volatile or mmio access counts as relaxed at the scope of the system.
Scope access_scope(const Instruction& instruction) {
    if (!is_strong(instruction.semantics)) return Scope::kNone;
    if (instruction.semantics == Semantics::kVolatile || instruction.semantics == Semantics::kMmio) {
        return Scope::kSystem;
    }
    return instruction.scope == Scope::kNone ? Scope::kGpu : instruction.scope;
}

Touch make_touch(const Warp& warp, const Instruction& instruction, bool write) {
    Touch touch;
    touch.space = instruction.space;
    touch.bytes = static_cast<uint32_t>(instruction.element_bytes) * instruction.vector;
    touch.write = write;
    touch.access.actor = warp.actor;
    touch.access.tick = warp.now;
    touch.access.scope = access_scope(instruction);
    touch.access.non_coherent = instruction.non_coherent;
    return touch;
}

void count(Machine& machine, Warp& warp, const Touch& touch, std::array<uint64_t, kLanes>& addresses,
           uint32_t mask) {
    Counters& counters = machine.counters(warp);
    uint64_t first = addresses[std::countr_zero(mask)];
    switch (Machine::resolve(touch.space, first)) {
        case Space::kGlobal:
        case Space::kConst:
            count_global(touch.write ? counters.global_store : counters.global_load, addresses.data(), mask,
                         touch.bytes);
            break;
        case Space::kShared:
        case Space::kSharedCluster:
            for (uint64_t& address : addresses) address = static_cast<uint32_t>(address);
            count_shared(counters, touch.write, addresses.data(), mask, touch.bytes);
            break;
        case Space::kLocal:
            ++counters.local.requests;
            counters.local.bytes += static_cast<uint64_t>(std::popcount(mask)) * touch.bytes;
            break;
        default:
            break;
    }
}

uint64_t extend(uint64_t value, int from_bytes, int to_bits) {
    const int unused = 64 - 8 * from_bytes;
    const auto wide = static_cast<uint64_t>(static_cast<int64_t>(value << unused) >> unused);
    return to_bits >= 64 ? wide : wide & ((uint64_t{1} << to_bits) - 1);
}

}  // namespace

Outcome run_load(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) {
    const Address& source = instruction.addresses[0];
    const uint64_t* base = machine.values(warp, source.base, mask);
    const Touch touch = make_touch(warp, instruction, false);
    const int element = instruction.element_bytes;
    const bool sign = type_is_signed(instruction.type) && element * 8 < instruction.output_bits;
    std::array<uint64_t, kLanes> addresses{};
    std::array<uint64_t*, 8> outputs{};
    for (int i = 0; i < instruction.vector; ++i) {
        if (instruction.outputs[i] != kNoSlot) outputs[i] = warp.lanes(instruction.outputs[i]);
    }
    Buffer* buffer = nullptr;
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const int lane = std::countr_zero(rest);
        const uint64_t address = base[lane] + static_cast<uint64_t>(source.offset);
        addresses[lane] = address;
        const uint8_t* bytes = machine.touch(warp, touch, lane, address, nullptr, buffer);
        if (touch.access.scope != Scope::kNone) {
            machine.synchronise_through(warp, lane, instruction.space, address, instruction, true, false);
        }
        for (int i = 0; i < instruction.vector; ++i) {
            if (!outputs[i]) continue;
            uint64_t value = 0;
            switch (element) {
                case 4: {
                    uint32_t word;
                    std::memcpy(&word, bytes + 4 * i, 4);
                    value = word;
                    break;
                }
                case 8:
                    std::memcpy(&value, bytes + 8 * i, 8);
                    break;
                default:
                    std::memcpy(&value, bytes + element * i, static_cast<size_t>(element));
            }
            outputs[i][lane] = sign ? extend(value, element, instruction.output_bits) : value;
        }
    }
    for (int i = 0; i < instruction.vector; ++i) {
        if (outputs[i]) warp.set_defined(instruction.outputs[i], mask);
    }
    count(machine, warp, touch, addresses, mask);
    // A strong load may be a poll: let the others run now and then.
    if (touch.access.scope != Scope::kNone && machine.random(4) == 0) {
        for (uint32_t rest = mask; rest; rest &= rest - 1) ++warp.pc[std::countr_zero(rest)];
        return Outcome::kYield;
    }
    return Outcome::kAdvance;
}

Outcome run_store(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) {
    const Address& target = instruction.addresses[0];
    const uint64_t* base = machine.values(warp, target.base, mask);
    const Touch touch = make_touch(warp, instruction, true);
    const int element = instruction.element_bytes;
    std::array<const uint64_t*, 8> inputs{};
    for (int i = 0; i < instruction.vector; ++i)
        inputs[i] = machine.values(warp, instruction.inputs[i], mask);
    std::array<uint64_t, kLanes> addresses{};
    Buffer* buffer = nullptr;
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const int lane = std::countr_zero(rest);
        const uint64_t address = base[lane] + static_cast<uint64_t>(target.offset);
        addresses[lane] = address;
        std::array<uint8_t, 64> value;
        for (int i = 0; i < instruction.vector; ++i) {
            std::memcpy(&value[static_cast<size_t>(element * i)], &inputs[i][lane],
                        static_cast<size_t>(element));
        }
        uint8_t* bytes = machine.touch(warp, touch, lane, address, value.data(), buffer);
        std::memcpy(bytes, value.data(), touch.bytes);
        machine.synchronise_through(warp, lane, instruction.space, address, instruction, false, true);
    }
    if (touch.access.scope != Scope::kNone) warp.tick();
    count(machine, warp, touch, addresses, mask);
    return Outcome::kAdvance;
}

}  // namespace ptxsim
