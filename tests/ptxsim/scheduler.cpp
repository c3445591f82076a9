// Who runs next, and for how long.
//
// A round gives every resident warp a turn, in random order. In a turn a warp runs groups of lanes that stand
// at the same instruction: usually the group furthest behind, so that diverged lanes meet again as early as
// they can, but now and then any other. A group runs straight on until it branches apart, waits, reaches
// another group, or its turn ends.
#include <algorithm>
#include <bit>
#include <cstring>

#include "execute.h"

namespace ptxsim {
namespace {

void set_pc(Warp& warp, uint32_t mask, int32_t pc) {
    if (mask == 0xffffffff) {
        warp.pc.fill(pc);
        return;
    }
    for (; mask; mask &= mask - 1) warp.pc[std::countr_zero(mask)] = pc;
}

}  // namespace

bool Machine::round_of_turns() {
    bool progress = false;
    const size_t clusters = live.size(), start = random(clusters);
    for (size_t i = 0; i < clusters; ++i) {
        for (auto& cta : live[(start + i) % clusters]->ctas) {
            const size_t warps = cta->warps.size(), first = random(warps);
            for (size_t j = 0; j < warps; ++j) {
                Warp& warp = *cta->warps[(first + j) % warps];
                if (!warp.alive) continue;
                if (options.chaos && (round < warp.held_until || round < cta->held_until)) {
                    progress = true;
                    continue;
                }
                if (!run_warp(warp)) continue;
                progress = true;
                if (!options.chaos) continue;
                // Only a warp that got on is held back: of those that wait for each other none is, so that a
                // deadlock is soon seen.
                const uint64_t dice = rng_();
                if (dice % 24 == 0) {
                    warp.held_until = round + static_cast<int64_t>(dice >> 32) % (dice >> 16 & 1 ? 8 : 64);
                }
                if ((dice >> 20) % 256 == 0) cta->held_until = round + static_cast<int64_t>(dice >> 40) % 128;
            }
        }
    }
    return progress;
}

bool Machine::unblock(Warp& warp) {
    bool any = false;
    for (uint32_t rest = warp.blocked; rest; rest &= rest - 1) {
        const int lane = std::countr_zero(rest);
        current = &warp.cta->launch->launch->kernel->code[warp.pc[lane]];
        current_mask = 1u << lane;
        if (!warp.blockers[lane]->ready(*this, warp, lane)) continue;
        warp.blockers[lane]->resume(*this, warp, lane);
        warp.blockers[lane].reset();
        warp.blocked &= ~(1u << lane);
        ++warp.pc[lane];
        any = true;
    }
    return any;
}

uint32_t Machine::guard_lanes(const Warp& warp, const Prepared& prepared, uint32_t mask) const {
    const uint64_t* predicate = values(warp, prepared.guard, mask);
    uint32_t set = 0;
    for (int lane = 0; lane < kLanes; ++lane) set |= static_cast<uint32_t>(predicate[lane] & 1) << lane;
    return mask & (prepared.guard_negated ? ~set : set);
}

bool Machine::run_warp(Warp& warp) {
    current_warp = &warp;
    bool progress = warp.blocked ? unblock(warp) : false;
    auto budget = static_cast<int64_t>(1 + random(2 * static_cast<uint64_t>(options.quantum)));
    while (budget > 0 && warp.runnable()) {
        progress = true;
        const LaneGroup group = choose_group(warp);
        const int64_t before = budget;
        const bool yields = run_group(warp, group, budget);
        thread_instructions_ +=
            static_cast<uint64_t>(std::popcount(group.mask)) * static_cast<uint64_t>(before - budget);
        if (thread_instructions_ > static_cast<uint64_t>(options.max_inst)) {
            fail("TIMEOUT",
                 format("%lld thread instructions have run, the limit of this run: is this loop endless?",
                        (long long)options.max_inst));
        }
        if (yields) break;
    }
    return progress;
}

Machine::LaneGroup Machine::choose_group(const Warp& warp) {
    const uint32_t runnable = warp.runnable();
    LaneGroup group;
    group.pc = INT32_MAX;
    for (uint32_t rest = runnable; rest; rest &= rest - 1) {
        group.pc = std::min(group.pc, warp.pc[std::countr_zero(rest)]);
    }
    if (random(8) == 0) {
        uint32_t rest = runnable;
        auto skip = random(static_cast<uint64_t>(std::popcount(runnable)));
        for (; skip; --skip) rest &= rest - 1;
        group.pc = warp.pc[std::countr_zero(rest)];
    }
    for (uint32_t rest = runnable; rest; rest &= rest - 1) {
        const int lane = std::countr_zero(rest);
        if (warp.pc[lane] == group.pc) {
            group.mask |= 1u << lane;
        } else if (warp.pc[lane] > group.pc) {
            group.next_group = std::min(group.next_group, warp.pc[lane]);
        }
    }
    group.alone = group.mask == runnable;
    return group;
}

bool Machine::run_group(Warp& warp, const LaneGroup& group, int64_t& budget) {
    const LaunchState& state = *warp.cta->launch;
    const Prepared* const code = state.code->code.data();
    uint64_t* const warp_counts = state.launch->counters.warp_instructions.data();
    uint64_t* const thread_counts = state.launch->counters.thread_instructions.data();
    const uint32_t mask = group.mask;
    // Program counters of the lanes are brought up to date when the group stops or something looks at them.
    for (int32_t pc = group.pc;;) {
        if (pc == group.next_group || budget <= 0) {
            set_pc(warp, mask, pc);
            return false;
        }
        const Prepared& prepared = code[pc];
        const Instruction& instruction = *prepared.instruction;
        current = &instruction;
        current_mask = mask;
        --budget;
        const uint32_t active = prepared.guard == kNoSlot ? mask : guard_lanes(warp, prepared, mask);
        current_mask = active;
        ++warp_counts[pc];
        thread_counts[pc] += static_cast<uint64_t>(std::popcount(active));
        if (!active) {
            ++pc;
            continue;
        }
        if (prepared.plain) {
            run_plain(warp, prepared, active);
            ++pc;
            continue;
        }
        if (instruction.opcode == Opcode::kBranch) {
            if (active == mask) {
                pc = instruction.target;
                if (group.alone) continue;
                set_pc(warp, mask, pc);
            } else {
                set_pc(warp, active, instruction.target);
                set_pc(warp, mask & ~active, pc + 1);
            }
            return false;
        }
        set_pc(warp, mask, pc);
        const Outcome outcome = execute(warp, instruction, active);
        if (outcome == Outcome::kAdvance) {
            ++pc;
            continue;
        }
        set_pc(warp, mask & ~active, pc + 1);
        return outcome == Outcome::kYield;
    }
}

void Machine::run_plain(Warp& warp, const Prepared& prepared, uint32_t mask) {
    if (options.registers) {
        const Slot bad = track_definitions(prepared, warp.defined, warp.registers.data(), mask);
        if (bad != kNoSlot) undefined_register(warp, bad, mask);
        if (prepared.divides) {
            // Compilers move divisions above the branch that guards them: only using the quotient is a fault.
            mask &= ~zero_divisors(prepared, warp.defined, warp.registers.data(), mask);
        }
    }
    if (warp.busy_registers) engine->plain_touches(*this, warp, *prepared.instruction);
    try {
        prepared.plain(*prepared.instruction, warp.registers.data(), mask);
    } catch (const Fault& fault) {
        fail(fault.kind, fault.detail);
    }
}

Outcome Machine::execute(Warp& warp, const Instruction& instruction, uint32_t mask) {
    if (warp.busy_registers && instruction.opcode != Opcode::kWgmma)
        engine->plain_touches(*this, warp, instruction);
    switch (instruction.opcode) {
        case Opcode::kNop:
            return Outcome::kAdvance;
        case Opcode::kLoad:
            return run_load(*this, warp, instruction, mask);
        case Opcode::kStore:
            return run_store(*this, warp, instruction, mask);
        case Opcode::kAtomic:
            return run_atomic(*this, warp, instruction, mask);
        case Opcode::kFence:
            return run_fence(*this, warp, instruction, mask);
        case Opcode::kCpAsync:
            return run_copy(*this, warp, instruction, mask);
        case Opcode::kCpAsyncCommit:
            return run_copy_commit(*this, warp, instruction, mask);
        case Opcode::kCpAsyncWait:
            return run_copy_wait(*this, warp, instruction, mask);
        case Opcode::kBranchIndexed: {
            const uint64_t* index = values(warp, instruction.inputs[0], mask);
            for (uint32_t rest = mask; rest; rest &= rest - 1) {
                const int lane = std::countr_zero(rest);
                const auto choice = static_cast<uint32_t>(index[lane]);
                if (choice >= instruction.targets.size()) {
                    fail("BRANCH", format("lane %d: index %u of %zu branch targets", lane, choice,
                                          instruction.targets.size()));
                }
                warp.pc[lane] = instruction.targets[choice];
            }
            return Outcome::kMoved;
        }
        case Opcode::kReturn:
            exit_lanes(warp, mask);
            return Outcome::kMoved;
        case Opcode::kTrap:
            fail("TRAP", "trap executed");
        case Opcode::kAssertFail:
            fail("ASSERT", assertion_text(warp, instruction, std::countr_zero(mask)));
        case Opcode::kReadTimer: {
            uint64_t* output = warp.lanes(instruction.outputs[0]);
            // Nothing is timed: the clock says how far the run has got.
            const auto now = static_cast<uint64_t>(round) * 1000 + thread_instructions_;
            for (uint32_t rest = mask; rest; rest &= rest - 1) {
                output[std::countr_zero(rest)] =
                    instruction.special == SpecialRegister::kClock ? static_cast<uint32_t>(now) : now;
            }
            warp.set_defined(instruction.outputs[0], mask);
            return Outcome::kAdvance;
        }
        case Opcode::kActiveMask: {
            uint64_t* output = warp.lanes(instruction.outputs[0]);
            for (uint32_t rest = mask; rest; rest &= rest - 1) output[std::countr_zero(rest)] = mask;
            warp.set_defined(instruction.outputs[0], mask);
            return Outcome::kAdvance;
        }
        default:
            break;
    }
    const int lane = std::countr_zero(mask);
    if (needed_lanes(warp, instruction, lane)) return gather(warp, instruction, mask);
    return execute_converged(warp, instruction, mask);
}

std::string Machine::assertion_text(Warp& warp, const Instruction& instruction, int lane) {
    std::array<uint64_t, 3> value{};  // message, file, line
    for (size_t i = 0; i < 3 && i < instruction.addresses.size(); ++i) {
        const Address& cell = instruction.addresses[i];
        const uint64_t offset = warp.lanes(cell.base)[lane] + static_cast<uint64_t>(cell.offset);
        const uint32_t frame = warp.cta->launch->launch->kernel->local_bytes;
        const size_t bytes = i == 2 ? 4 : 8;
        if (offset + bytes > frame) return "assertion failed";
        std::memcpy(&value[i], &warp.local[static_cast<size_t>(lane) * frame + offset], bytes);
    }
    auto text = [&](uint64_t address) {
        std::string out;
        for (; memory.find(address, 1, false) && out.size() < 200; ++address) {
            const char letter = *reinterpret_cast<const char*>(address);
            if (!letter) break;
            out += letter;
        }
        return out;
    };
    return "assertion " + text(value[0]) + format(" (%s:%u)", text(value[1]).c_str(), (unsigned)value[2]);
}

}  // namespace ptxsim
