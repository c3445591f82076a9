// Instructions that several lanes of a warp must execute together: a lane that comes first waits for the
// rest.
#include <bit>

#include "execute.h"

namespace ptxsim {
namespace {

bool needs_whole_warp(Opcode opcode) {
    switch (opcode) {
        case Opcode::kLoadMatrix:
        case Opcode::kStoreMatrix:
        case Opcode::kMma:
        case Opcode::kWgmma:
        case Opcode::kWgmmaFence:
        case Opcode::kWgmmaCommit:
        case Opcode::kWgmmaWait:
        case Opcode::kSetMaxNReg:
            return true;
        default:
            return false;
    }
}

}  // namespace

uint32_t Machine::needed_lanes(const Warp& warp, const Instruction& instruction, int lane) const {
    if (instruction.member_mask != kNoSlot) {
        const auto members = static_cast<uint32_t>(value(warp, instruction.member_mask, lane));
        if (!(members >> lane & 1)) {
            fail("SYNC_MASK",
                 format("lane %d executes this with member mask %08x, which omits it", lane, members));
        }
        return members & warp.initial;
    }
    if (needs_whole_warp(instruction.opcode)) {
        if (warp.alive != 0xffffffff) {
            fail("DIVERGED",
                 format("all 32 lanes of the warp must execute this; only %08x have not exited", warp.alive));
        }
        return warp.alive;
    }
    return instruction.aligned ? warp.alive : 0;
}

Outcome Machine::gather(Warp& warp, const Instruction& instruction, uint32_t mask) {
    const int32_t pc = warp.pc[std::countr_zero(mask)];
    bool moved = false;
    for (uint32_t rest = mask; rest;) {
        const int lane = std::countr_zero(rest);
        const uint32_t needed = needed_lanes(warp, instruction, lane) & warp.alive;
        uint32_t group = 0;
        for (uint32_t others = rest & needed; others; others &= others - 1) {
            const int other = std::countr_zero(others);
            if ((needed_lanes(warp, instruction, other) & warp.alive) == needed) group |= 1u << other;
        }
        rest &= ~group;
        if (group == needed && group == mask) return execute_converged(warp, instruction, mask);
        moved = true;
        warp.converging |= group;
    }
    if (moved) {
        for (uint32_t rest = mask; rest; rest &= rest - 1) warp.pc[std::countr_zero(rest)] = pc;
        converge(warp);
    }
    return Outcome::kMoved;
}

bool Machine::converge(Warp& warp) {
    bool any = false;
    for (uint32_t rest = warp.converging; rest;) {
        const int lane = std::countr_zero(rest);
        const int32_t pc = warp.pc[lane];
        const Instruction& instruction = warp.cta->launch->launch->kernel->code[pc];
        const Instruction* const saved = current;
        current = &instruction;
        const uint32_t needed = needed_lanes(warp, instruction, lane) & warp.alive;
        uint32_t present = 0;
        for (uint32_t others = warp.converging & needed; others; others &= others - 1) {
            const int other = std::countr_zero(others);
            if (warp.pc[other] == pc && (needed_lanes(warp, instruction, other) & warp.alive) == needed) {
                present |= 1u << other;
            }
        }
        rest &= ~present;
        if (present == needed) {
            warp.converging &= ~needed;
            const uint32_t saved_mask = current_mask;
            current_mask = needed;
            if (execute_converged(warp, instruction, needed) == Outcome::kAdvance) {
                for (uint32_t lanes = needed; lanes; lanes &= lanes - 1) ++warp.pc[std::countr_zero(lanes)];
            }
            current_mask = saved_mask;
            any = true;
        }
        current = saved;
    }
    return any;
}

Outcome Machine::execute_converged(Warp& warp, const Instruction& instruction, uint32_t mask) {
    switch (instruction.opcode) {
        case Opcode::kShuffle:
        case Opcode::kVote:
        case Opcode::kMatch:
        case Opcode::kRedux:
        case Opcode::kElect:
        case Opcode::kWarpSync:
            return run_collective(*this, warp, instruction, mask);
        case Opcode::kBarrier:
        case Opcode::kBarrierArrive:
        case Opcode::kBarrierReduce:
            return run_barrier(*this, warp, instruction, mask);
        case Opcode::kLoadMatrix:
            return run_load_matrix(*this, warp, instruction);
        case Opcode::kStoreMatrix:
            return run_store_matrix(*this, warp, instruction);
        case Opcode::kMma:
            return run_mma(*this, warp, instruction);
        default:
            return engine->execute(*this, warp, instruction, mask);
    }
}

}  // namespace ptxsim
