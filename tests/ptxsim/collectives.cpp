// Lanes that exchange values: shfl, vote, match, redux, elect; and bar.warp.sync, which orders their
// accesses.
#include <algorithm>
#include <array>
#include <bit>

#include "execute.h"

namespace ptxsim {
namespace {

template <typename Body>
void each_lane(uint32_t mask, Body body) {
    for (; mask; mask &= mask - 1) body(std::countr_zero(mask));
}

void write(Warp& warp, Slot slot, uint32_t mask, const std::array<uint64_t, kLanes>& values) {
    if (slot == kNoSlot) return;
    uint64_t* target = warp.lanes(slot);
    each_lane(mask, [&](int lane) { target[lane] = values[lane]; });
    warp.set_defined(slot, mask);
}

void shuffle(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) {
    const uint64_t* operand = warp.lanes(instruction.inputs[0]);
    const uint64_t* selectors = machine.values(warp, instruction.inputs[1], mask);
    const uint64_t* controls = machine.values(warp, instruction.inputs[2], mask);
    std::array<uint64_t, kLanes> result{}, in_range{};
    each_lane(mask, [&](int lane) {
        const int selector = static_cast<int>(selectors[lane] & 31);
        const int clamp = static_cast<int>(controls[lane] & 31),
                  segment = static_cast<int>(controls[lane] >> 8 & 31);
        const int last = (lane & segment) | (clamp & ~segment), first = lane & segment;
        int source = lane;
        bool valid = true;
        switch (instruction.shuffle) {
            case Shuffle::kUp:
                source = lane - selector;
                valid = source >= last;
                break;
            case Shuffle::kDown:
                source = lane + selector;
                valid = source <= last;
                break;
            case Shuffle::kButterfly:
                source = lane ^ selector;
                valid = source <= last;
                break;
            case Shuffle::kIndex:
                source = first | (selector & ~segment);
                valid = source <= last;
                break;
        }
        if (!valid) source = lane;
        if (!(mask >> source & 1)) {
            machine.fail("SHFL", format("lane %d reads lane %d, which does not take part (mask %08x)", lane,
                                        source, mask));
        }
        machine.require_defined(warp, instruction.inputs[0], 1u << source);
        result[lane] = static_cast<uint32_t>(operand[source]);
        in_range[lane] = valid;
    });
    write(warp, instruction.outputs[0], mask, result);
    if (instruction.outputs.size() > 1) write(warp, instruction.outputs[1], mask, in_range);
}

void vote(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) {
    const uint64_t* predicates = machine.values(warp, instruction.inputs[0], mask);
    uint32_t ballot = 0;
    each_lane(mask, [&](int lane) {
        if ((predicates[lane] & 1) != (instruction.negated ? 1u : 0u)) ballot |= 1u << lane;
    });
    uint64_t value = ballot;
    switch (instruction.vote) {
        case Vote::kAll:
            value = ballot == mask;
            break;
        case Vote::kAny:
            value = ballot != 0;
            break;
        case Vote::kUniform:
            value = ballot == 0 || ballot == mask;
            break;
        case Vote::kBallot:
            break;
    }
    std::array<uint64_t, kLanes> result;
    result.fill(value);
    write(warp, instruction.outputs[0], mask, result);
}

void match(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) {
    const uint64_t* operand = machine.values(warp, instruction.inputs[0], mask);
    const uint64_t used = type_bytes(instruction.type) == 8 ? ~uint64_t{0} : 0xffffffff;
    std::array<uint64_t, kLanes> peers{}, all{};
    each_lane(mask, [&](int lane) {
        uint32_t equal = 0;
        each_lane(mask, [&](int other) {
            if (((operand[lane] ^ operand[other]) & used) == 0) equal |= 1u << other;
        });
        all[lane] = equal == mask;
        peers[lane] = instruction.match_all ? (equal == mask ? mask : 0) : equal;
    });
    write(warp, instruction.outputs[0], mask, peers);
    if (instruction.outputs.size() > 1) write(warp, instruction.outputs[1], mask, all);
}

void reduce(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) {
    const uint64_t* operand = machine.values(warp, instruction.inputs[0], mask);
    const bool is_signed = type_is_signed(instruction.type);
    auto less = [&](uint32_t a, uint32_t b) {
        return is_signed ? static_cast<int32_t>(a) < static_cast<int32_t>(b) : a < b;
    };
    auto value = static_cast<uint32_t>(operand[std::countr_zero(mask)]);
    each_lane(mask & (mask - 1), [&](int lane) {
        const auto next = static_cast<uint32_t>(operand[lane]);
        switch (instruction.reduction) {
            case Reduction::kAdd:
                value += next;
                break;
            case Reduction::kMin:
                value = less(next, value) ? next : value;
                break;
            case Reduction::kMax:
                value = less(value, next) ? next : value;
                break;
            case Reduction::kAnd:
                value &= next;
                break;
            case Reduction::kOr:
                value |= next;
                break;
            case Reduction::kXor:
                value ^= next;
                break;
            default:
                machine.fail("UNSUPPORTED", "this reduction of redux");
        }
    });
    std::array<uint64_t, kLanes> result;
    result.fill(value);
    write(warp, instruction.outputs[0], mask, result);
}

// Some lane of the mask, always the same for the same mask: which one, the seed says.
void elect(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) {
    const uint64_t hash = (mask + static_cast<uint64_t>(machine.options.seed)) * 0x9e3779b97f4a7c15ull;
    uint32_t rest = mask;
    for (uint64_t skip = (hash >> 32) % std::popcount(mask); skip; --skip) rest &= rest - 1;
    const int elected = std::countr_zero(rest);
    std::array<uint64_t, kLanes> leader, chosen{};
    leader.fill(static_cast<uint64_t>(elected));
    chosen[elected] = 1;
    write(warp, instruction.outputs[0], mask, leader);
    write(warp, instruction.outputs[1], mask, chosen);
}

}  // namespace

Outcome run_collective(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) {
    switch (instruction.opcode) {
        case Opcode::kShuffle:
            shuffle(machine, warp, instruction, mask);
            break;
        case Opcode::kVote:
            vote(machine, warp, instruction, mask);
            break;
        case Opcode::kMatch:
            match(machine, warp, instruction, mask);
            break;
        case Opcode::kRedux:
            reduce(machine, warp, instruction, mask);
            break;
        case Opcode::kElect:
            elect(machine, warp, instruction, mask);
            break;
        default:
            warp.synchronise_lanes(mask);
    }
    return Outcome::kAdvance;
}

}  // namespace ptxsim
