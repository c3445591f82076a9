// Clusters: barrier.cluster, addresses in another CTA's shared memory, and when a CTA may exit.
#include <bit>

#include "engine.h"

namespace ptxsim {
namespace {

uint32_t running_threads(const Cluster& cluster) {
    uint32_t threads = 0;
    for (const auto& cta : cluster.ctas)
        for (const auto& warp : cta->warps) threads += static_cast<uint32_t>(std::popcount(warp->alive));
    return threads;
}

struct ClusterWait : Blocker {
    uint64_t phase = 0;
    const Instruction* instruction = nullptr;

    bool ready(Machine&, Warp& warp, int) override {
        return engine_cluster(*warp.cta->cluster).phase != phase;
    }

    void resume(Machine&, Warp& warp, int lane) override {
        if (instruction->semantics == Semantics::kRelaxed) return;
        warp.learn(engine_cluster(*warp.cta->cluster).completed, 1u << lane);
    }

    std::string describe(const Machine&) const override { return "the other threads at barrier.cluster"; }
};

}  // namespace

// A phase ends when all threads of the cluster that have not exited have arrived.
void advance_cluster_barrier(Cluster& cluster) {
    EngineCluster& barrier = engine_cluster(cluster);
    if (barrier.arrived == 0 || barrier.arrived < running_threads(cluster)) return;
    barrier.arrived = 0;
    ++barrier.phase;
    if (barrier.completed.empty()) barrier.completed = cluster.new_clock();
    barrier.completed.join(barrier.arriving);
    barrier.arriving.clear();
}

Outcome run_cluster_arrive(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) {
    EngineWarp& state = engine_warp(warp);
    Cluster& cluster = *warp.cta->cluster;
    if (state.cluster_arrived & mask)
        machine.fail("CLUSTER_BARRIER", format("lanes %08x arrive twice without barrier.cluster.wait between",
                                               state.cluster_arrived & mask));
    state.cluster_arrived |= mask;
    EngineCluster& barrier = engine_cluster(cluster);
    if (barrier.arriving.empty()) barrier.arriving = cluster.new_clock();
    state.cluster_phase = barrier.phase;
    if (instruction.semantics != Semantics::kRelaxed) warp.publish(barrier.arriving, mask);
    warp.tick();
    barrier.arrived += static_cast<uint32_t>(std::popcount(mask));
    advance_cluster_barrier(cluster);
    return Outcome::kAdvance;
}

Outcome run_cluster_wait(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) {
    EngineWarp& state = engine_warp(warp);
    if (mask & ~state.cluster_arrived)
        machine.fail("CLUSTER_BARRIER", format("lanes %08x wait without barrier.cluster.arrive before",
                                               mask & ~state.cluster_arrived));
    state.cluster_arrived &= ~mask;
    EngineCluster& barrier = engine_cluster(*warp.cta->cluster);
    if (barrier.phase != state.cluster_phase) {
        if (instruction.semantics != Semantics::kRelaxed) warp.learn(barrier.completed, mask);
        return Outcome::kAdvance;
    }
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        auto wait = std::make_unique<ClusterWait>();
        wait->phase = state.cluster_phase;
        wait->instruction = &instruction;
        machine.block(warp, std::countr_zero(rest), std::move(wait));
    }
    return Outcome::kYield;
}

Outcome run_mapa(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) {
    const uint64_t* address = machine.values(warp, instruction.inputs[0], mask);
    const uint64_t* rank = machine.values(warp, instruction.inputs[1], mask);
    uint64_t* result = warp.lanes(instruction.outputs[0]);
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const int lane = std::countr_zero(rest);
        const auto target = static_cast<uint32_t>(rank[lane]);
        if (target >= warp.cta->cluster->ctas.size())
            machine.fail("SHARED_OOB", format("lane %d: mapa of rank %u in a cluster of %zu CTAs", lane,
                                              target, warp.cta->cluster->ctas.size()));
        const uint64_t window = instruction.space == Space::kGeneric ? kSharedWindow : 0;
        result[lane] = window | uint64_t{target + 1} << 24 | (address[lane] & 0xffffff);
    }
    warp.set_defined(instruction.outputs[0], mask);
    return Outcome::kAdvance;
}

Outcome run_cta_rank(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) {
    const uint64_t* address = machine.values(warp, instruction.inputs[0], mask);
    uint64_t* result = warp.lanes(instruction.outputs[0]);
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const int lane = std::countr_zero(rest);
        const uint32_t rank = static_cast<uint32_t>(address[lane]) >> 24;
        result[lane] = rank == 0 ? warp.cta->rank : rank - 1;
    }
    warp.set_defined(instruction.outputs[0], mask);
    return Outcome::kAdvance;
}

// A CTA's shared memory is gone when it exits: its exit must come after every access by other CTAs.
void check_remote_accesses_at_exit(Machine& machine, Cta& cta) {
    if (!cta.shadow) return;  // races are not looked for
    EngineCta& state = engine_cta(cta);
    for (const RemoteAccess& access : state.remote)
        if (state.exit_clock.missing(access.actor, 1u << access.lane, access.tick))
            machine.fail(
                "CLUSTER_EXIT",
                "the CTA's exit is not ordered after an access to its shared memory by " +
                    machine.actors.describe(access.actor, 1u << access.lane, cta.actor(ActorKind::kWarp, 0)));
}

}  // namespace ptxsim
