// bar.sync, bar.red and bar.arrive: the sixteen named barriers of a CTA.
#include <bit>

#include "execute.h"

namespace ptxsim {
namespace {

uint32_t cta_threads_rounded(const Cta& cta) { return static_cast<uint32_t>(cta.warps.size()) * kLanes; }

// Releases the waiters once everyone has come.
void complete_if_full(Machine& machine, NamedBarrier& barrier, uint32_t id) {
    if (barrier.arrived > barrier.needed) {
        machine.fail("BARRIER", format("%u threads arrive at barrier %u, which is for %u", barrier.arrived,
                                       id, barrier.needed));
    }
    if (barrier.arrived < barrier.needed) return;
    for (const NamedBarrier::Waiter& waiter : barrier.waiters) {
        Warp& warp = *waiter.warp;
        warp.at_barrier &= ~waiter.mask;
        warp.learn(barrier.clock, waiter.mask);
        if ((warp.alive & ~waiter.mask) == 0) warp.forget_differences();
        uint64_t result = 0;
        if (waiter.instruction->opcode == Opcode::kBarrierReduce) {
            switch (waiter.instruction->reduction) {
                case Reduction::kPopc:
                    result = barrier.popc;
                    break;
                case Reduction::kAnd:
                    result = barrier.all;
                    break;
                default:
                    result = barrier.any;
            }
        }
        for (uint32_t rest = waiter.mask; rest; rest &= rest - 1) {
            const int lane = std::countr_zero(rest);
            if (waiter.instruction->opcode == Opcode::kBarrierReduce) {
                warp.lanes(waiter.instruction->outputs[0])[lane] = result;
            }
            ++warp.pc[lane];
        }
        if (waiter.instruction->opcode == Opcode::kBarrierReduce) {
            warp.set_defined(waiter.instruction->outputs[0], waiter.mask);
        }
    }
    barrier = NamedBarrier{};
}

}  // namespace

Outcome run_barrier(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) {
    Cta& cta = *warp.cta;
    const bool reduces = instruction.opcode == Opcode::kBarrierReduce;
    const bool waits = instruction.opcode != Opcode::kBarrierArrive;
    const uint64_t id = machine.uniform(warp, instruction.inputs[0], mask, "barrier number");
    if (id > 15) machine.fail("BARRIER", format("there is no barrier %llu", (unsigned long long)id));
    const size_t plain_inputs = instruction.inputs.size() - (reduces ? 1 : 0);
    const bool counted = plain_inputs > 1;
    uint64_t needed = cta_threads_rounded(cta);
    if (counted) {
        needed = machine.uniform(warp, instruction.inputs[1], mask, "thread count");
        if (needed == 0 || needed % kLanes || needed > cta_threads_rounded(cta)) {
            machine.fail("BARRIER",
                         format("thread count %llu is not a positive multiple of 32 within the CTA's %u",
                                (unsigned long long)needed, cta_threads_rounded(cta)));
        }
    }
    if (warp.alive != warp.initial && instruction.aligned) {
        machine.fail("BARRIER", format("lanes %08x of the warp have exited, but all threads of the warp must "
                                       "execute this barrier",
                                       warp.initial & ~warp.alive));
    }
    NamedBarrier& barrier = cta.barriers[id];
    if (barrier.arrived && (barrier.needed != needed || barrier.reduces != reduces)) {
        machine.fail("BARRIER", format("barrier %llu is in use for %u threads%s, now named for %llu%s",
                                       (unsigned long long)id, barrier.needed,
                                       barrier.reduces ? " with a reduction" : "", (unsigned long long)needed,
                                       reduces ? " with a reduction" : ""));
    }
    if (!barrier.arrived) {
        barrier.needed = static_cast<uint32_t>(needed);
        barrier.counted = counted;
        barrier.reduces = reduces;
        barrier.clock = cta.cluster->new_clock();
    }
    barrier.arrived += mask == warp.initial ? kLanes : std::popcount(mask);
    warp.publish(barrier.clock, mask);
    warp.tick();
    if (reduces) {
        const uint64_t* predicates = machine.values(warp, instruction.inputs.back(), mask);
        for (uint32_t rest = mask; rest; rest &= rest - 1) {
            const bool set = (predicates[std::countr_zero(rest)] & 1) != (instruction.negated ? 1 : 0);
            barrier.popc += set;
            barrier.all &= set;
            barrier.any |= set;
        }
    }
    if (waits) {
        warp.at_barrier |= mask;
        barrier.waiters.push_back({&warp, mask, &instruction});
    } else {
        for (uint32_t rest = mask; rest; rest &= rest - 1) ++warp.pc[std::countr_zero(rest)];
    }
    complete_if_full(machine, barrier, static_cast<uint32_t>(id));
    return Outcome::kMoved;
}

void check_barriers_at_exit(Machine& machine, Cta& cta) {
    for (size_t id = 0; id < cta.barriers.size(); ++id) {
        const NamedBarrier& barrier = cta.barriers[id];
        if (!barrier.arrived) continue;
        machine.fail("BARRIER", format("the CTA ends with %u of %u threads arrived at barrier %zu",
                                       barrier.arrived, barrier.needed, id));
    }
}

}  // namespace ptxsim
