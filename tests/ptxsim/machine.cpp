#include "machine.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include "execute.h"

namespace ptxsim {
namespace {

// IEEE arithmetic while it lives: the caller may have set the processor to flush subnormal numbers.
class IeeeScope {
#if defined(__SSE2__)
  public:
    IeeeScope() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
    ~IeeeScope() { _mm_setcsr(saved_); }
    IeeeScope(const IeeeScope&) = delete;
    IeeeScope& operator=(const IeeeScope&) = delete;

  private:
    unsigned saved_;
#endif
};

}  // namespace

bool Cta::alive() const {
    return std::any_of(warps.begin(), warps.end(), [](const auto& warp) { return warp->alive != 0; });
}

Actor Cta::actor(ActorKind kind, uint32_t index) const {
    return cluster->first_actor + rank * cluster->layout.per_cta() + cluster->layout.offset(kind) + index;
}

Machine::Machine(Memory& global_memory, const Options& run_options)
    : memory(global_memory),
      options(run_options),
      engine(make_async_engine()),
      rng_(static_cast<uint64_t>(run_options.seed)) {}

Machine::~Machine() = default;

void Machine::fail(FaultKind kind, const std::string& message) const {
    throw Fault(kind, message + where(*this));
}

void Machine::undefined_register(const Warp& warp, Slot slot, uint32_t mask) const {
    const Kernel& kernel = *warp.cta->launch->launch->kernel;
    fail("UNINIT", format("lanes %08x read register %s, which they never wrote", mask & ~warp.defined[slot],
                          kernel.slot_names[slot].c_str()));
}

uint64_t Machine::uniform(const Warp& warp, Slot slot, uint32_t mask, const char* what) const {
    const uint64_t* lanes = values(warp, slot, mask);
    const uint64_t first = lanes[std::countr_zero(mask)];
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        if (lanes[std::countr_zero(rest)] != first) {
            fail("NOT_UNIFORM", format("the %s differs between lanes of the warp", what));
        }
    }
    return first;
}

void Machine::block(Warp& warp, int lane, std::unique_ptr<Blocker> blocker) {
    warp.blockers[lane] = std::move(blocker);
    warp.blocked |= 1u << lane;
}

void Machine::add_async(std::shared_ptr<AsyncOp> op, Warp& warp, const Instruction& instruction) {
    op->issuer = &warp;
    op->instruction = &instruction;
    op->due = async_delay();
    queue.add(op);
    if (options.async_delay == 0) queue.finish(*this, *op);
}

// ---- starting and ending

void Machine::run(std::span<Launch> list) {
    [[maybe_unused]] const IeeeScope ieee;
    std::vector<std::vector<int>> order;
    launches.clear();
    for (size_t i = 0; i < list.size(); ++i) {
        Launch& launch = list[i];
        auto& prepared = prepared_[launch.kernel];
        if (!prepared) prepared = std::make_unique<PreparedKernel>(*launch.kernel);
        LaunchState state;
        state.launch = &launch;
        state.index = static_cast<uint32_t>(i);
        state.code = prepared.get();
        state.total = 1;
        for (int axis = 0; axis < 3; ++axis) {
            if (!launch.cluster[axis] || !launch.block[axis] || launch.grid[axis] % launch.cluster[axis]) {
                throw Fault("LAUNCH", launch.kernel->name + ": the grid is no multiple of the cluster");
            }
            state.total *= launch.grid[axis] / launch.cluster[axis];
        }
        launch.counters = Counters{};
        launch.counters.kernel = launch.kernel->name;
        launch.counters.warp_instructions.assign(launch.kernel->code.size(), 0);
        launch.counters.thread_instructions.assign(launch.kernel->code.size(), 0);
        launches.push_back(state);
        order.push_back(launch.after);
    }
    actors.clear();
    actors.set_launch_order(order);
    syncs.clear();
    queue.clear();
    live.clear();
    round = 0;
    thread_instructions_ = 0;
    memory.begin_run(options.races);
    struct End {
        Machine& machine;
        ~End() {
            machine.queue.clear();
            machine.live.clear();
            machine.memory.end_run();
            machine.current_warp = nullptr;
            machine.current = nullptr;
        }
    } end{*this};
    for (;;) {
        start_clusters();
        if (live.empty()) break;
        ++round;
        bool progress = round_of_turns();
        current_warp = nullptr;
        current = nullptr;
        progress |= queue.advance(*this, round);
        const size_t before = live.size();
        retire();
        if (progress || live.size() != before) continue;
        const int64_t next = queue.earliest();
        if (next == INT64_MAX) deadlock();
        round = next - 1;
    }
}

void Machine::start_clusters() {
    for (LaunchState& state : launches) {
        if (state.next == state.total) continue;
        if (state.next == 0 && state.live == 0) {
            const bool ready = std::all_of(state.launch->after.begin(), state.launch->after.end(),
                                           [&](int earlier) { return launches[earlier].ended(); });
            if (!ready) continue;
            // What ended before this launch is ordered before it, if every launch that has started has.
            const bool alone = std::all_of(launches.begin(), launches.end(), [&](const LaunchState& other) {
                return &other == &state || (other.next == 0 && other.total) ||
                       actors.launch_ordered(other.index, state.index);
            });
            if (alone) state.floor = actors.next();
            if (options.chaos && state.total > 1) {  // hardware promises no order
                do {
                    state.stride = 1 + random(state.total - 1);
                } while (std::gcd(state.stride, state.total) != 1);
                state.offset = random(state.total);
            }
        }
        const auto& shape = state.launch->cluster;
        const uint32_t ctas = shape[0] * shape[1] * shape[2];
        const auto most = std::max<uint32_t>(1, static_cast<uint32_t>(options.max_resident) / ctas);
        while (state.next < state.total && state.live < most) {
            live.push_back(make_cluster(state));
            ++state.live;
        }
    }
}

std::unique_ptr<Cluster> Machine::make_cluster(LaunchState& state) {
    Launch& launch = *state.launch;
    const auto& shape = launch.cluster;
    const uint32_t threads = launch.block[0] * launch.block[1] * launch.block[2];
    const uint32_t warps = (threads + kLanes - 1) / kLanes;
    std::array<uint64_t, 3> clusters;
    for (int axis = 0; axis < 3; ++axis) clusters[axis] = launch.grid[axis] / shape[axis];
    const auto place = static_cast<unsigned __int128>(state.next++) * state.stride + state.offset;
    const auto index = static_cast<uint64_t>(place % state.total);
    const std::array<uint64_t, 3> at = {index % clusters[0], index / clusters[0] % clusters[1],
                                        index / clusters[0] / clusters[1]};
    auto cluster = std::make_unique<Cluster>();
    cluster->launch = &state;
    cluster->layout = {warps, state.code->copies, state.code->async};

    ActorGroup group;
    group.layout = cluster->layout;
    group.ctas = shape[0] * shape[1] * shape[2];
    group.launch = state.index;
    group.rank = launch.rank;
    group.kernel = &launch.kernel->name;
    for (uint32_t rank = 0; rank < group.ctas; ++rank) {
        const std::array<uint32_t, 3> inside = {rank % shape[0], rank / shape[0] % shape[1],
                                                rank / shape[0] / shape[1]};
        std::array<uint32_t, 3> id;
        for (int axis = 0; axis < 3; ++axis) {
            id[axis] = static_cast<uint32_t>(at[axis]) * shape[axis] + inside[axis];
        }
        group.cta_ids.push_back(id);
    }
    const auto ids = group.cta_ids;
    cluster->first_actor = actors.add(std::move(group));

    const uint32_t shared_end = launch.kernel->dynamic_shared_address + launch.dynamic_shared;
    for (uint32_t rank = 0; rank < ids.size(); ++rank) {
        std::unique_ptr<Cta> cta;
        if (spare_ctas_.empty()) {
            cta = std::make_unique<Cta>();
        } else {
            cta = std::move(spare_ctas_.back());
            spare_ctas_.pop_back();
        }
        cta->cluster = cluster.get();
        cta->launch = &state;
        cta->rank = rank;
        cta->id = ids[rank];
        const bool same_size = cta->shared_end == shared_end;
        cta->shared_end = shared_end;
        cta->shared.assign(shared_end + 16, 0xcd);
        cta->states.assign(shared_end + 16, 0);
        if (!options.races || shared_end <= kSharedReserved) {
            cta->shadow.reset();
        } else if (cta->shadow && same_size) {
            cta->shadow->clear();
        } else {
            cta->shadow = std::make_unique<Shadow>(shared_end + 16);
        }
        cta->barriers = {};
        cta->syncs.clear();
        cta->async.reset();
        cta->held_until = options.chaos && random(3) == 0 ? round + static_cast<int64_t>(random(100)) : 0;
        cluster->ctas.push_back(std::move(cta));
        Cta& placed = *cluster->ctas.back();
        placed.warps.resize(warps);
        for (uint32_t warp = 0; warp < warps; ++warp) make_warp(placed, warp, threads);
    }
    // Every warp's clocks span the whole cluster, which is known only now.
    for (auto& cta : cluster->ctas) {
        for (auto& warp : cta->warps) warp->known = cluster->new_clock();
    }
    launch.counters.shared_bytes = launch.kernel->static_shared_bytes + launch.dynamic_shared;
    launch.counters.ctas += ids.size();
    launch.counters.threads += uint64_t{threads} * ids.size();
    return cluster;
}

void Machine::make_warp(Cta& cta, uint32_t index, uint32_t threads) {
    const Kernel& kernel = *cta.launch->launch->kernel;
    auto& warp = cta.warps[index];
    std::vector<uint64_t> registers;
    std::vector<uint8_t> local;
    if (warp) {  // the storage of a warp that has ended
        registers = std::move(warp->registers);
        local = std::move(warp->local);
    }
    warp = std::make_unique<Warp>();
    warp->cta = &cta;
    warp->index = index;
    warp->actor = cta.actor(ActorKind::kWarp, index);
    const uint32_t first = index * kLanes;
    const uint32_t lanes = std::min<uint32_t>(kLanes, threads - first);
    warp->initial = warp->alive = lanes == kLanes ? 0xffffffff : (1u << lanes) - 1;
    warp->registers = std::move(registers);
    if (options.registers) {
        warp->registers.resize(static_cast<size_t>(kernel.slots) * kLanes);
    } else {
        warp->registers.assign(static_cast<size_t>(kernel.slots) * kLanes, 0);
    }
    warp->defined.assign(static_cast<size_t>(kernel.slots), 0);
    warp->local = std::move(local);
    warp->local.resize(static_cast<size_t>(kernel.local_bytes) * kLanes);
    warp->local_written.assign(static_cast<size_t>(kernel.local_bytes) * kLanes, 0);
    if (cta.launch->code->async) {
        warp->busy.assign(static_cast<size_t>(kernel.slots), 0);
        warp->last_touch.assign(static_cast<size_t>(kernel.slots), 0);
    }
    fill_registers(*warp);
}

void Machine::retire() {
    for (size_t i = 0; i < live.size();) {
        Cluster& cluster = *live[i];
        const bool alive = std::any_of(cluster.ctas.begin(), cluster.ctas.end(),
                                       [](const auto& cta) { return cta->alive(); });
        if (alive) {
            ++i;
            continue;
        }
        for (auto& cta : cluster.ctas) {
            current_warp = cta->warps[0].get();
            check_barriers_at_exit(*this, *cta);
            if (const AsyncOp* op = queue.touching(*cta)) {
                current_warp = op->issuer;
                current = op->instruction;
                fail("ASYNC_EXIT", "the CTA ends while this is in flight");
            }
        }
        engine->cluster_exits(*this, cluster);
        current_warp = nullptr;
        --cluster.launch->live;
        for (auto& cta : cluster.ctas) spare_ctas_.push_back(std::move(cta));
        live.erase(live.begin() + static_cast<std::ptrdiff_t>(i));
    }
}

void Machine::exit_lanes(Warp& warp, uint32_t mask) {
    engine->lanes_exit(*this, warp, mask);
    for (const auto& batch : warp.copies) check_copies_at_exit(*this, *batch, mask);
    warp.alive &= ~mask;
    if (!warp.alive && !warp.cta->alive()) engine->cta_exits(*this, *warp.cta);
    if (warp.converging) converge(warp);
}

// Reports lanes that wait for lanes of their warp which stand at another such instruction or have exited;
// returns if what they wait for is itself waiting for something else.
void Machine::report_divergence(Warp& warp) {
    const int lane = std::countr_zero(warp.converging);
    const int32_t pc = warp.pc[lane];
    current_warp = &warp;
    current = &warp.cta->launch->launch->kernel->code[pc];
    const uint32_t needed = needed_lanes(warp, *current, lane);
    uint32_t present = 0;
    for (uint32_t rest = warp.converging & needed; rest; rest &= rest - 1) {
        const int other = std::countr_zero(rest);
        if (warp.pc[other] == pc && needed_lanes(warp, *current, other) == needed) present |= 1u << other;
    }
    current_mask = present;
    const uint32_t missing = needed & warp.alive & ~present;
    if (missing & (warp.blocked | warp.at_barrier)) {
        current_warp = nullptr;
        current = nullptr;
        return;
    }
    throw Fault("DIVERGED",
                format("lanes %08x wait for lanes %08x, which must execute this with them but cannot "
                       "reach it",
                       present, missing) +
                    where(*this) + describe_waiting(*this));
}

void Machine::deadlock() {
    for (const auto& cluster : live) {
        for (const auto& cta : cluster->ctas) {
            for (const auto& warp : cta->warps) {
                if (warp->converging) report_divergence(*warp);
            }
            uint32_t exited = 0;
            for (const auto& warp : cta->warps) {
                if (!warp->alive) exited += static_cast<uint32_t>(std::popcount(warp->initial));
            }
            for (size_t id = 0; exited && id < cta->barriers.size(); ++id) {
                const NamedBarrier& barrier = cta->barriers[id];
                if (barrier.waiters.empty() || barrier.counted) continue;
                throw Fault("BARRIER",
                            format("%u of %u threads have come to barrier %zu, and %u threads of the CTA "
                                   "have exited without it",
                                   barrier.arrived, barrier.needed, id, exited) +
                                describe_waiting(*this));
            }
        }
    }
    throw Fault("DEADLOCK",
                "no warp can go on and no asynchronous operation is pending" + describe_waiting(*this));
}

}  // namespace ptxsim
