// mbarrier objects: phases, arrival counts, transaction counts, and waiting for them.
#include <bit>

#include "engine.h"

namespace ptxsim {
namespace {

constexpr uint32_t kMaxCount = (1u << 20) - 1;

// Every operation on the object is a strong access to its 8 bytes; its init is an ordinary write. So an
// operation that the init is not ordered before races, and so does an init or inval that is not ordered after
// the operations.
void touch_object(Machine& machine, Warp& warp, int lane, Cta& cta, uint32_t offset, bool ordinary) {
    if (!cta.shadow) return;
    Access access;
    access.actor = warp.actor;
    access.tick = warp.now;
    access.lane = static_cast<uint8_t>(lane);
    if (!ordinary) {
        access.scope = Scope::kSystem;
        access.atomic = true;
    }
    Conflict conflict;
    if (cta.shadow->write(offset, 8, access, machine.view(warp, lane), conflict)) return;
    machine.fail("RACE", describe_conflict(
                             machine, format("the mbarrier at shared offset %u", offset - kSharedReserved),
                             true, access, conflict));
}

Cta& barrier_target(Machine& machine, Warp& warp, const Instruction& instruction, int lane,
                    uint32_t& offset) {
    uint64_t address = address_of(machine, warp, instruction.addresses[0], lane);
    Space space = Machine::resolve(instruction.space, address);
    if (space != Space::kShared && space != Space::kSharedCluster)
        machine.fail("MBAR_MISUSE", format("lane %d: an mbarrier must lie in shared memory", lane));
    if (address % 8 != 0)
        machine.fail("MISALIGNED", format("lane %d: an mbarrier must be aligned to 8 bytes", lane));
    return machine.shared_target(warp, space, address, 8, offset);
}

void check_counts(Machine& machine, Mbarrier& barrier, uint32_t offset) {
    if (barrier.pending < 0)
        machine.fail("MBAR_MISUSE",
                     format("the mbarrier at shared offset %u gets more arrivals than its count, %u",
                            offset - kSharedReserved, barrier.expected));
    if (barrier.tx > kMaxCount || barrier.tx < -static_cast<int64_t>(kMaxCount))
        machine.fail("MBAR_MISUSE",
                     format("the transaction count of the mbarrier at shared offset %u leaves its range",
                            offset - kSharedReserved));
    if (barrier.pending != 0 || barrier.tx != 0) return;
    ++barrier.phase;
    barrier.pending = barrier.expected;
    barrier.completed.join(barrier.arriving);
    barrier.arriving.clear();
}

bool phase_done(const Mbarrier& barrier, uint64_t waited, bool parity) {
    return parity ? (barrier.phase & 1) != (waited & 1) : barrier.phase != waited;
}

// A lane in mbarrier.try_wait.
struct MbarrierWait : Blocker {
    Mbarrier* barrier = nullptr;
    const Instruction* instruction = nullptr;
    uint32_t offset = 0;
    uint64_t waited = 0;  // parity, or the phase of a token
    bool learned = false;

    bool ready(Machine&, Warp&, int) override { return phase_done(*barrier, waited, instruction->parity); }

    void resume(Machine&, Warp& warp, int lane) override {
        warp.lanes(instruction->outputs[0])[lane] = 1;
        warp.set_defined(instruction->outputs[0], 1u << lane);
        if (learned || instruction->semantics == Semantics::kRelaxed) return;
        // The lanes that wait for the same learn together: what all of a warp know is kept once.
        uint32_t together = 0;
        for (uint32_t rest = warp.blocked | 1u << lane; rest; rest &= rest - 1) {
            auto* other = dynamic_cast<MbarrierWait*>(warp.blockers[std::countr_zero(rest)].get());
            if (other == nullptr || other->barrier != barrier || other->waited != waited) continue;
            together |= 1u << std::countr_zero(rest);
            other->learned = true;
        }
        warp.learn(barrier->completed, together | 1u << lane);
    }

    std::string describe(const Machine&) const override {
        return format(
            "mbarrier at shared offset %u {phase %llu, %lld arrivals and %lld bytes missing}, waiting for %s "
            "%llu",
            offset - kSharedReserved, static_cast<unsigned long long>(barrier->phase),
            static_cast<long long>(barrier->pending), static_cast<long long>(barrier->tx),
            instruction->parity ? "parity" : "phase", static_cast<unsigned long long>(waited));
    }
};

}  // namespace

Mbarrier& find_mbarrier(Machine& machine, Warp& warp, int lane, Cta& cta, uint32_t offset) {
    auto& barriers = engine_cta(cta).barriers;
    const auto found = barriers.find(offset);
    if (found == barriers.end())
        machine.fail("MBAR_MISUSE", format("lane %d: no mbarrier was initialised at shared offset %u", lane,
                                           offset - kSharedReserved));
    const Mbarrier& barrier = found->second;
    if (cta.shadow &&
        machine.view(warp, lane).missing(barrier.init_actor, 1u << barrier.init_lane, barrier.init_tick))
        machine.fail(
            "RACE",
            format("lane %d uses the mbarrier at shared offset %u, whose initialisation by %s is not "
                   "ordered before",
                   lane, offset - kSharedReserved,
                   machine.actors.describe(barrier.init_actor, 1u << barrier.init_lane, warp.actor).c_str()));
    touch_object(machine, warp, lane, cta, offset, false);
    return found->second;
}

Outcome run_mbarrier_init(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) {
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const int lane = std::countr_zero(rest);
        uint32_t offset;
        Cta& cta = barrier_target(machine, warp, instruction, lane, offset);
        const auto count = static_cast<uint32_t>(machine.value(warp, instruction.inputs[0], lane));
        if (count == 0 || count > kMaxCount)
            machine.fail("MBAR_MISUSE", format("lane %d: count %u is not in 1 .. 2^20 - 1", lane, count));
        auto& barriers = engine_cta(cta).barriers;
        if (const auto next = barriers.lower_bound(offset - 7);
            next != barriers.end() && next->first < offset + 8)
            machine.fail("MBAR_MISUSE",
                         format("lane %d initialises the mbarrier at shared offset %u, which is in use", lane,
                                offset - kSharedReserved));
        touch_object(machine, warp, lane, cta, offset, true);
        Mbarrier barrier;
        barrier.expected = count;
        barrier.pending = count;
        barrier.arriving = barrier.completed = cta.cluster->new_clock();
        barrier.init_actor = warp.actor;
        barrier.init_lane = static_cast<uint8_t>(lane);
        barrier.init_tick = warp.now;
        barriers[offset] = std::move(barrier);
        for (uint32_t i = 0; i < 8; ++i) cta.states[offset + i] |= kMbarrierObject;
    }
    return Outcome::kAdvance;
}

Outcome run_mbarrier_invalidate(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) {
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const int lane = std::countr_zero(rest);
        uint32_t offset;
        Cta& cta = barrier_target(machine, warp, instruction, lane, offset);
        const Mbarrier& barrier = find_mbarrier(machine, warp, lane, cta, offset);
        if (barrier.tx != 0)
            machine.fail("MBAR_MISUSE",
                         format("lane %d invalidates an mbarrier that still waits for %lld bytes", lane,
                                static_cast<long long>(barrier.tx)));
        touch_object(machine, warp, lane, cta, offset, true);
        engine_cta(cta).barriers.erase(offset);
        for (uint32_t i = 0; i < 8; ++i)
            cta.states[offset + i] &= static_cast<uint8_t>(~(kMbarrierObject | kInitialised));
    }
    return Outcome::kAdvance;
}

Outcome run_mbarrier_arrive(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) {
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const int lane = std::countr_zero(rest);
        uint32_t offset;
        Cta& cta = barrier_target(machine, warp, instruction, lane, offset);
        Mbarrier& barrier = find_mbarrier(machine, warp, lane, cta, offset);
        note_remote(warp, lane, cta);
        const uint32_t operand =
            instruction.inputs.empty()
                ? 1
                : static_cast<uint32_t>(machine.value(warp, instruction.inputs[0], lane));
        if (instruction.opcode == Opcode::kMbarrierExpectTx) {
            barrier.tx += operand;
        } else if (instruction.opcode == Opcode::kMbarrierCompleteTx) {
            barrier.tx -= operand;
        } else {
            if (!instruction.outputs.empty() && instruction.outputs[0] != kNoSlot) {
                warp.lanes(instruction.outputs[0])[lane] = barrier.phase;
                warp.set_defined(instruction.outputs[0], 1u << lane);
            }
            // An arrival with the scope of its CTA, written so, orders nothing for another one's threads.
            const bool narrow = &cta != warp.cta && instruction.scope == Scope::kCta;
            if (instruction.semantics != Semantics::kRelaxed && !narrow)
                warp.publish(barrier.arriving, 1u << lane);
            if (instruction.expect_tx) barrier.tx += operand;
            const int64_t count = instruction.expect_tx ? 1 : operand;
            if (instruction.no_complete && barrier.pending <= count)
                machine.fail("MBAR_MISUSE",
                             format("lane %d: an arrival with .noComplete completes the phase", lane));
            if (instruction.drop) barrier.expected -= static_cast<uint32_t>(count);
            barrier.pending -= count;
        }
        check_counts(machine, barrier, offset);
    }
    warp.tick();
    return Outcome::kAdvance;
}

Outcome run_mbarrier_wait(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) {
    // A try_wait may come back empty-handed: mostly for all lanes alike, at times for some of them.
    const bool spurious = static_cast<int64_t>(machine.random(100)) < machine.options.spurious;
    const bool scattered = spurious && machine.random(8) == 0;
    uint32_t done = 0, failed = 0, blocked = 0;
    const Mbarrier* common = nullptr;
    bool alike = true;
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const int lane = std::countr_zero(rest);
        uint32_t offset;
        Cta& cta = barrier_target(machine, warp, instruction, lane, offset);
        if (&cta != warp.cta)
            machine.fail("MBAR_MISUSE", format("lane %d waits on the mbarrier of another CTA", lane));
        Mbarrier& barrier = find_mbarrier(machine, warp, lane, cta, offset);
        alike = alike && (common == nullptr || common == &barrier);
        common = &barrier;
        const uint64_t waited = machine.value(warp, instruction.inputs[0], lane);
        if (instruction.parity && waited > 1)
            machine.fail("MBAR_MISUSE", format("lane %d: parity %llu is not 0 or 1", lane,
                                               static_cast<unsigned long long>(waited)));
        if (!instruction.parity && (waited > barrier.phase || barrier.phase - waited > 1))
            machine.fail("MBAR_MISUSE", format("lane %d waits with the token of phase %llu in phase %llu",
                                               lane, static_cast<unsigned long long>(waited),
                                               static_cast<unsigned long long>(barrier.phase)));
        if (phase_done(barrier, waited, instruction.parity)) {
            done |= 1u << lane;
        } else if (instruction.test_only || (spurious && (!scattered || machine.random(2) == 0))) {
            failed |= 1u << lane;
        } else {
            auto wait = std::make_unique<MbarrierWait>();
            wait->barrier = &barrier;
            wait->instruction = &instruction;
            wait->offset = offset;
            wait->waited = waited;
            machine.block(warp, lane, std::move(wait));
            blocked |= 1u << lane;
        }
    }
    const Slot result = instruction.outputs[0];
    for (uint32_t rest = done | failed; rest; rest &= rest - 1) {
        const int lane = std::countr_zero(rest);
        warp.lanes(result)[lane] = done >> lane & 1;
        warp.set_defined(result, 1u << lane);
        ++warp.pc[lane];
    }
    if (done != 0 && instruction.semantics != Semantics::kRelaxed) {
        if (alike) {
            warp.learn(common->completed, done);
        } else {
            for (uint32_t rest = done; rest; rest &= rest - 1) {
                uint32_t offset;
                const int lane = std::countr_zero(rest);
                Cta& cta = barrier_target(machine, warp, instruction, lane, offset);
                warp.learn(engine_cta(cta).barriers.at(offset).completed, 1u << lane);
            }
        }
    }
    return failed != 0 || blocked != 0 ? Outcome::kYield : Outcome::kMoved;
}

void complete_tx(Machine& machine, Mbarrier& barrier, uint32_t offset, int64_t bytes) {
    barrier.tx -= bytes;
    check_counts(machine, barrier, offset);
}

void check_mbarriers_at_exit(Machine& machine, Cta& cta) {
    for (const auto& [offset, barrier] : engine_cta(cta).barriers)
        if (barrier.tx != 0)
            machine.fail("MBAR_EXIT",
                         format("the CTA ends while the mbarrier at shared offset %u waits for %lld bytes",
                                offset - kSharedReserved, static_cast<long long>(barrier.tx)));
}

}  // namespace ptxsim
