#include "cp_async.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "execute.h"

namespace ptxsim {

void CopyBatch::complete(Machine&) {
    Cta& cta = *issuer->cta;
    for (uint32_t rest = lanes; rest; rest &= rest - 1) {
        const Piece& piece = pieces[std::countr_zero(rest)];
        if (piece.bytes) std::memcpy(&cta.shared[piece.offset], piece.source, piece.bytes);
        std::memset(&cta.shared[piece.offset + piece.bytes], 0, piece.filled);
        for (uint32_t i = 0; i < piece.bytes + piece.filled; ++i) cta.states[piece.offset + i] = kInitialised;
    }
}

Outcome run_copy(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) {
    Cta& cta = *warp.cta;
    const auto size = static_cast<uint32_t>(instruction.immediates[0]);
    const Address& target = instruction.addresses[0];
    const Address& source = instruction.addresses[1];
    const uint64_t* targets = machine.values(warp, target.base, mask);
    const uint64_t* sources = machine.values(warp, source.base, mask);
    const uint64_t* sizes = nullptr;
    const uint64_t* ignored = nullptr;
    for (Slot slot : instruction.inputs) {
        const bool predicate = cta.launch->launch->kernel->slot_bits[slot] == 1;
        (predicate ? ignored : sizes) = machine.values(warp, slot, mask);
    }
    auto batch = std::make_shared<CopyBatch>();
    batch->lanes = mask;
    batch->tick = ++warp.copy_now;
    Access access;
    access.actor = cta.actor(ActorKind::kCopy, warp.index);
    access.tick = batch->tick;
    Buffer* buffer = nullptr;
    std::array<uint64_t, kLanes> addresses{};
    uint32_t reading = 0;
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const int lane = std::countr_zero(rest);
        access.lane = static_cast<uint8_t>(lane);
        const View view = machine.view(warp, lane);
        CopyBatch::Piece& piece = batch->pieces[lane];
        uint64_t to = targets[lane] + static_cast<uint64_t>(target.offset);
        const uint64_t from = sources[lane] + static_cast<uint64_t>(source.offset);
        Space space = instruction.space == Space::kGeneric ? Space::kShared : instruction.space;
        piece.bytes = size;
        if (sizes) piece.bytes = static_cast<uint32_t>(sizes[lane]);
        if (piece.bytes > size) {
            machine.fail("CP_ASYNC",
                         format("lane %d: source size %u exceeds the copy size %u", lane, piece.bytes, size));
        }
        if (ignored && (ignored[lane] & 1) != (instruction.negated ? 1u : 0u)) piece.bytes = 0;
        piece.filled = size - piece.bytes;
        if (to % size || from % size) {
            machine.fail("MISALIGNED", format("lane %d: cp.async of %u bytes from %#llx to shared %#llx",
                                              lane, size, (unsigned long long)from, (unsigned long long)to));
        }
        machine.shared_target(warp, space, to, size, piece.offset);
        if (piece.bytes) {
            buffer = &machine.global_touch(from, piece.bytes, false, access, view, nullptr, buffer);
            piece.source = reinterpret_cast<const uint8_t*>(from);
            addresses[lane] = from;
            reading |= 1u << lane;
        }
        machine.shared_write(cta, piece.offset, size, access, view, false);
        for (uint32_t i = 0; i < size; ++i) cta.states[piece.offset + i] |= kInFlight;
        batch->group[lane] = warp.copy_group[lane];
    }
    Counters& counters = machine.counters(warp);
    if (reading) count_global(counters.global_load, addresses.data(), reading, size);
    counters.copied_bytes += static_cast<uint64_t>(std::popcount(mask)) * size;
    warp.copies.push_back(batch);
    machine.add_async(batch, warp, instruction);
    return Outcome::kAdvance;
}

Outcome run_copy_commit(Machine&, Warp& warp, const Instruction&, uint32_t mask) {
    for (uint32_t rest = mask; rest; rest &= rest - 1) ++warp.copy_group[std::countr_zero(rest)];
    return Outcome::kAdvance;
}

// Completes the waiting lanes' copies up to the group named; they then count as the lane's own past.
Outcome run_copy_wait(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) {
    const Actor copies = warp.cta->actor(ActorKind::kCopy, warp.index);
    const uint64_t open =
        instruction.immediates.empty() ? 0 : static_cast<uint64_t>(instruction.immediates[0]);
    std::array<Tick, kLanes> known{};
    for (const auto& batch : warp.copies) {
        for (uint32_t rest = mask & batch->lanes; rest; rest &= rest - 1) {
            const int lane = std::countr_zero(rest);
            const bool covered = instruction.wait_all || batch->group[lane] + open < warp.copy_group[lane];
            if (!covered) continue;
            machine.queue.finish(machine, *batch);
            batch->awaited |= 1u << lane;
            known[lane] = std::max(known[lane], batch->tick);
        }
    }
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const int lane = std::countr_zero(rest);
        if (known[lane]) warp.learn_own_copies(lane, copies, known[lane]);
    }
    std::erase_if(warp.copies, [](const auto& batch) { return batch->awaited == batch->lanes; });
    return Outcome::kAdvance;
}

void check_copies_at_exit(Machine& machine, const CopyBatch& batch, uint32_t lanes) {
    const uint32_t careless = batch.lanes & ~batch.awaited & lanes;
    if (!careless) return;
    const Instruction* const exit = machine.current;
    machine.current = batch.instruction;
    machine.fail("ASYNC_EXIT", format("lanes %08x exit at PTX line %d without having waited for this",
                                      careless, exit ? exit->line : 0));
}

}  // namespace ptxsim
