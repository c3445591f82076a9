#include "bulk_copy.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace ptxsim {
namespace {

// cp.async.bulk: adjacent bytes.
struct PlainLoad : LoadOp {
    const uint8_t* source = nullptr;
    void copy(Machine&, uint8_t* shared, uint32_t offset) const override {
        std::memcpy(shared + offset, source, bytes);
    }
};

struct PlainStore : BulkOp {
    uint8_t* destination = nullptr;
    void write(Machine&) const override { std::memcpy(destination, captured.data(), bytes); }
};

void check_size(Machine& machine, int lane, uint64_t bytes, uint64_t global) {
    if (bytes == 0 || bytes % 16 != 0)
        machine.fail("TMA_ALIGN",
                     format("lane %d: a bulk copy of %llu bytes: the size must be a multiple of 16", lane,
                            static_cast<unsigned long long>(bytes)));
    if (global % 16 != 0)
        machine.fail("TMA_ALIGN",
                     format("lane %d: the global address of a bulk copy must be aligned to 16 bytes", lane));
}

uint32_t load_actor(Machine& machine, Cta& cta, Mbarrier& barrier) {
    if (!barrier.loads) {
        uint32_t& used = engine_cta(cta).load_actors;
        if (used == kMbarrierActors)
            machine.fail("UNSUPPORTED",
                         format("a CTA with more than %u mbarriers that loads complete on", kMbarrierActors));
        barrier.loads = used++;
    }
    return *barrier.loads;
}

}  // namespace

bool LoadOp::touches(const Cta& cta) const {
    return std::any_of(destinations.begin(), destinations.end(),
                       [&](const Destination& destination) { return destination.cta == &cta; });
}

void LoadOp::complete(Machine& machine) {
    for (const Destination& to : destinations) {
        copy(machine, to.cta->shared.data(), to.offset);
        for (uint32_t i = 0; i < bytes; ++i) {
            uint8_t& state = to.cta->states[to.offset + i];
            state = static_cast<uint8_t>((state & ~kInFlight) | kInitialised);
        }
        auto& barriers = engine_cta(*to.cta).barriers;
        const auto barrier = barriers.find(to.barrier);
        if (barrier == barriers.end())
            machine.fail("MBAR_MISUSE",
                         format("the mbarrier at shared offset %u was invalidated while a load was to "
                                "complete on it",
                                to.barrier - kSharedReserved));
        barrier->second.arriving.raise(to.cta->actor(ActorKind::kBarrier, *barrier->second.loads), to.tick);
        complete_tx(machine, barrier->second, to.barrier, bytes);
    }
}

void prepare_load(Machine& machine, Warp& warp, const Instruction& instruction, int lane, uint32_t bytes,
                  uint32_t alignment, uint16_t cta_mask, LoadOp& op, const Clock& known) {
    uint64_t target = address_of(machine, warp, instruction.addresses[0], lane);
    uint64_t barrier_at = address_of(machine, warp, instruction.addresses[2], lane);
    const Space space = Machine::resolve(Space::kSharedCluster, target);
    Machine::resolve(Space::kSharedCluster, barrier_at);
    uint32_t offset, barrier_offset;
    Cta& first = machine.shared_target(warp, space, static_cast<uint32_t>(target), bytes, offset);
    Cta& barrier_cta =
        machine.shared_target(warp, space, static_cast<uint32_t>(barrier_at), 8, barrier_offset);
    if (&first != &barrier_cta)
        machine.fail("MBAR_MISUSE",
                     format("lane %d: the mbarrier of a load must lie in the CTA it loads into", lane));
    if (offset % alignment != 0)
        machine.fail(
            "TMA_ALIGN",
            format("lane %d: the shared address of this copy is not aligned to %u bytes", lane, alignment));
    std::vector<Cta*> targets;
    const auto& ctas = warp.cta->cluster->ctas;
    if (instruction.multicast) {
        if (cta_mask == 0 || cta_mask >> ctas.size())
            machine.fail("MULTICAST", format("lane %d: mask %#x names a CTA outside the cluster, or none",
                                             lane, cta_mask));
        for (size_t rank = 0; rank < ctas.size(); ++rank)
            if (cta_mask >> rank & 1) targets.push_back(ctas[rank].get());
    } else {
        targets.push_back(&first);
    }
    op.bytes = bytes;
    for (Cta* cta : targets) {
        if (!cta->alive())
            machine.fail("CLUSTER_EXIT", "load into the shared memory of a CTA that has exited");
        Mbarrier& barrier = find_mbarrier(machine, warp, lane, *cta, barrier_offset);
        if (!barrier.visible_to_proxy)
            machine.fail(
                "PROXY",
                format("lane %d: the initialisation of the mbarrier at shared offset %u was not made "
                       "visible to the async proxy (fence.mbarrier_init or fence.proxy.async)",
                       lane, barrier_offset - kSharedReserved));
        note_remote(warp, lane, *cta);
        Access access;
        access.actor = cta->actor(ActorKind::kBarrier, load_actor(machine, *cta, barrier));
        access.tick = ++barrier.load_tick;
        access.async_proxy = true;
        machine.shared_write(*cta, offset, bytes, access, view_of(machine, warp, known), false);
        for (uint32_t i = 0; i < bytes; ++i) {
            uint8_t& state = cta->states[offset + i];
            state = static_cast<uint8_t>((state & ~kInitialised) | kInFlight);
        }
        op.destinations.push_back({cta, offset, barrier_offset, access.tick});
    }
    machine.counters(warp).bulk_load_bytes += bytes;
}

Access load_access(const LoadOp& op) {
    const LoadOp::Destination& to = op.destinations.front();
    Access access;
    access.actor = to.cta->actor(ActorKind::kBarrier, *engine_cta(*to.cta).barriers.at(to.barrier).loads);
    access.tick = to.tick;
    access.async_proxy = true;
    return access;
}

Outcome run_bulk_load(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) {
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const int lane = std::countr_zero(rest);
        const uint64_t bytes = static_cast<uint32_t>(machine.value(warp, instruction.inputs[0], lane));
        uint64_t source = address_of(machine, warp, instruction.addresses[1], lane);
        check_size(machine, lane, bytes, source);
        const uint16_t cta_mask =
            instruction.multicast ? static_cast<uint16_t>(machine.value(warp, instruction.inputs[1], lane))
                                  : 0;
        const Clock known = published(warp, 1u << lane);
        auto op = std::make_shared<PlainLoad>();
        prepare_load(machine, warp, instruction, lane, static_cast<uint32_t>(bytes), 16, cta_mask, *op,
                     known);
        const View view = view_of(machine, warp, known);
        const Space space = Machine::resolve(instruction.source_space, source);
        if (space == Space::kShared || space == Space::kSharedCluster) {
            uint32_t offset;
            Cta& from = machine.shared_target(warp, space, source, static_cast<uint32_t>(bytes), offset);
            machine.shared_read(from, offset, static_cast<uint32_t>(bytes), load_access(*op), view);
            op->source = &from.shared[offset];
        } else {
            machine.global_touch(source, static_cast<uint32_t>(bytes), false, load_access(*op), view, nullptr,
                                 nullptr);
            op->source = reinterpret_cast<const uint8_t*>(source);
        }
        machine.add_async(op, warp, instruction);
    }
    return Outcome::kAdvance;
}

// ---- stores

void BulkOp::read_source() {
    if (read_done) return;
    captured.assign(cta->shared.begin() + offset, cta->shared.begin() + offset + bytes);
    read_done = true;
}

void BulkOp::complete(Machine& machine) {
    read_source();
    write(machine);
}

void prepare_store(Machine& machine, Warp& warp, const Instruction&, int lane, const Address& source,
                   uint32_t bytes, uint32_t alignment, BulkOp& op, const Clock& known) {
    uint64_t address = address_of(machine, warp, source, lane);
    const Space space = Machine::resolve(Space::kShared, address);
    op.cta = &machine.shared_target(warp, space, static_cast<uint32_t>(address), bytes, op.offset);
    if (op.offset % alignment != 0)
        machine.fail(
            "TMA_ALIGN",
            format("lane %d: the shared address of this copy is not aligned to %u bytes", lane, alignment));
    op.bytes = bytes;
    op.tick = ++engine_warp(warp).store_tick;
    Access access;
    access.actor = warp.cta->actor(ActorKind::kBulk, warp.index);
    access.tick = op.tick;
    access.lane = static_cast<uint8_t>(lane);
    access.async_proxy = true;
    machine.shared_read(*op.cta, op.offset, bytes, access, view_of(machine, warp, known));
    machine.counters(warp).bulk_store_bytes += bytes;
}

Access store_access(const Warp& warp, int lane, const BulkOp& op) {
    Access access;
    access.actor = warp.cta->actor(ActorKind::kBulkWrite, warp.index);
    access.tick = op.tick;
    access.lane = static_cast<uint8_t>(lane);
    access.async_proxy = true;
    return access;
}

void submit_store(Machine& machine, Warp& warp, const Instruction& instruction, int lane,
                  std::shared_ptr<BulkOp> op) {
    engine_warp(warp).open_stores[lane].push_back(op);
    machine.add_async(std::move(op), warp, instruction);
}

Outcome run_bulk_store(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) {
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const int lane = std::countr_zero(rest);
        const auto bytes = static_cast<uint32_t>(machine.value(warp, instruction.inputs[0], lane));
        const uint64_t destination = address_of(machine, warp, instruction.addresses[0], lane);
        check_size(machine, lane, bytes, destination);
        const Clock known = published(warp, 1u << lane);
        auto op = std::make_shared<PlainStore>();
        prepare_store(machine, warp, instruction, lane, instruction.addresses[1], bytes, 16, *op, known);
        machine.global_touch(destination, bytes, true, store_access(warp, lane, *op),
                             view_of(machine, warp, known), nullptr, nullptr);
        op->destination = reinterpret_cast<uint8_t*>(destination);
        submit_store(machine, warp, instruction, lane, std::move(op));
    }
    return Outcome::kAdvance;
}

Outcome run_bulk_commit(Machine&, Warp& warp, const Instruction&, uint32_t mask) {
    EngineWarp& state = engine_warp(warp);
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const int lane = std::countr_zero(rest);
        state.store_groups[lane].push_back(std::exchange(state.open_stores[lane], {}));
    }
    return Outcome::kAdvance;
}

// A lane waits by having the machine finish the groups now: when they would have finished otherwise is up to
// the machine anyway.
Outcome run_bulk_wait(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) {
    EngineWarp& state = engine_warp(warp);
    const auto allowed = static_cast<size_t>(instruction.immediates[0]);
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const int lane = std::countr_zero(rest);
        auto& groups = state.store_groups[lane];
        Tick last = 0;
        for (size_t i = 0; i + allowed < groups.size(); ++i) {
            for (const auto& op : groups[i]) {
                op->awaited = true;
                if (instruction.read_only) {
                    op->read_source();
                } else {
                    machine.queue.finish(machine, *op);
                }
                last = std::max(last, op->tick);
            }
        }
        if (!instruction.read_only)
            while (groups.size() > allowed) groups.pop_front();
        if (last == 0) continue;
        // Ticks of a warp's stores are shared by its lanes: one lane's wait says nothing of another's stores,
        // which have a lane of their own.
        Clock done;
        done.raise_lane(warp.cta->actor(ActorKind::kBulk, warp.index), lane, last);
        if (!instruction.read_only)
            done.raise_lane(warp.cta->actor(ActorKind::kBulkWrite, warp.index), lane, last);
        warp.learn(done, 1u << lane);
    }
    return Outcome::kAdvance;
}

void check_stores_at_exit(Machine& machine, Warp& warp, uint32_t mask) {
    if (!warp.async) return;
    EngineWarp& state = engine_warp(warp);
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const int lane = std::countr_zero(rest);
        if (!state.open_stores[lane].empty())
            machine.fail("BULK_EXIT", format("lane %d exits with a bulk store it never committed", lane));
        for (const auto& group : state.store_groups[lane])
            for (const auto& op : group) {
                if (!op->awaited)
                    machine.fail("BULK_EXIT",
                                 format("lane %d exits while a bulk store may still read shared memory: "
                                        "cp.async.bulk.wait_group is missing",
                                        lane));
                machine.queue.finish(machine, *op);  // the end of the kernel waits for what is left to write
            }
        state.store_groups[lane].clear();
    }
}

}  // namespace ptxsim
