#include "engine.h"

#include <bit>

namespace ptxsim {
namespace {

class Engine : public AsyncEngine {
  public:
    Outcome execute(Machine& machine, Warp& warp, const Instruction& instruction, uint32_t mask) override {
        switch (instruction.opcode) {
            case Opcode::kMbarrierInit:
                return run_mbarrier_init(machine, warp, instruction, mask);
            case Opcode::kMbarrierInvalidate:
                return run_mbarrier_invalidate(machine, warp, instruction, mask);
            case Opcode::kMbarrierArrive:
            case Opcode::kMbarrierExpectTx:
            case Opcode::kMbarrierCompleteTx:
                return run_mbarrier_arrive(machine, warp, instruction, mask);
            case Opcode::kMbarrierWait:
                return run_mbarrier_wait(machine, warp, instruction, mask);
            case Opcode::kBulkLoad:
                return run_bulk_load(machine, warp, instruction, mask);
            case Opcode::kBulkStore:
                return run_bulk_store(machine, warp, instruction, mask);
            case Opcode::kTensorLoad:
                return run_tensor_load(machine, warp, instruction, mask);
            case Opcode::kTensorStore:
                return run_tensor_store(machine, warp, instruction, mask);
            case Opcode::kBulkCommit:
                return run_bulk_commit(machine, warp, instruction, mask);
            case Opcode::kBulkWait:
                return run_bulk_wait(machine, warp, instruction, mask);
            case Opcode::kWgmma:
                return run_wgmma(machine, warp, instruction);
            case Opcode::kWgmmaFence:
                return run_wgmma_fence(machine, warp);
            case Opcode::kWgmmaCommit:
                return run_wgmma_commit(machine, warp);
            case Opcode::kWgmmaWait:
                return run_wgmma_wait(machine, warp, instruction);
            case Opcode::kClusterArrive:
                return run_cluster_arrive(machine, warp, instruction, mask);
            case Opcode::kClusterWait:
                return run_cluster_wait(machine, warp, instruction, mask);
            case Opcode::kMapa:
                return run_mapa(machine, warp, instruction, mask);
            case Opcode::kGetCtaRank:
                return run_cta_rank(machine, warp, instruction, mask);
            case Opcode::kSetMaxNReg:
                return run_set_max_registers(machine, warp, instruction);
            case Opcode::kProxyFence:
                return run_proxy_fence(machine, warp, instruction, mask);
            case Opcode::kMbarrierInitFence:
                return run_mbarrier_init_fence(machine, warp, mask);
            case Opcode::kGridDepLaunch:
            case Opcode::kGridDepWait:
                // No launch here is a dependent one: both do nothing, as on a device.
                return Outcome::kAdvance;
            default:
                machine.fail("UNSUPPORTED", "the simulator does not execute this instruction");
        }
    }

    void plain_touches(Machine& machine, Warp& warp, const Instruction& instruction) override {
        touch_registers(machine, warp, instruction);
    }

    void remote_access(Warp& warp, int lane, Cta& target) override { note_remote(warp, lane, target); }

    void lanes_exit(Machine& machine, Warp& warp, uint32_t mask) override {
        check_stores_at_exit(machine, warp, mask);
        if ((warp.alive & ~mask) == 0) check_wgmma_at_exit(machine, warp);
        if (warp.cta->cluster->ctas.size() == 1) return;
        EngineCta& cta = engine_cta(*warp.cta);
        if (cta.exit_clock.empty()) cta.exit_clock = warp.cta->cluster->new_clock();
        warp.publish(cta.exit_clock, mask);
    }

    void cta_exits(Machine& machine, Cta& cta) override {
        if (const AsyncOp* op = machine.queue.touching(cta)) {
            machine.current = op->instruction;
            machine.fail("ASYNC_EXIT",
                         "the CTA exits while an asynchronous copy into its shared memory is in flight");
        }
        check_mbarriers_at_exit(machine, cta);
        check_remote_accesses_at_exit(machine, cta);
        advance_cluster_barrier(*cta.cluster);
    }

    void cluster_exits(Machine&, Cluster&) override {}
};

}  // namespace

std::unique_ptr<AsyncEngine> make_async_engine() { return std::make_unique<Engine>(); }

EngineWarp& engine_warp(Warp& warp) {
    if (!warp.async) warp.async = std::make_unique<EngineWarp>();
    return static_cast<EngineWarp&>(*warp.async);
}

EngineCta& engine_cta(Cta& cta) {
    if (!cta.async) cta.async = std::make_shared<EngineCta>();
    return *static_cast<EngineCta*>(cta.async.get());
}

EngineCluster& engine_cluster(Cluster& cluster) {
    if (!cluster.async) cluster.async = std::make_shared<EngineCluster>();
    return *static_cast<EngineCluster*>(cluster.async.get());
}

Clock published(Warp& warp, uint32_t mask) {
    Clock clock = warp.cta->cluster->new_clock();
    warp.publish(clock, mask);
    warp.tick();
    return clock;
}

View view_of(const Machine& machine, const Warp& issuer, const Clock& known) {
    View view;
    view.known = &known;
    view.floor = issuer.cta->launch->floor;
    view.launch = issuer.cta->launch->index;
    view.actors = &machine.actors;
    return view;
}

void note_remote(Warp& warp, int lane, Cta& target) {
    if (&target == warp.cta) return;
    auto& remote = engine_cta(target).remote;
    for (RemoteAccess& access : remote) {
        if (access.actor != warp.actor || access.lane != lane) continue;
        access.tick = warp.now;
        return;
    }
    remote.push_back({warp.actor, static_cast<uint8_t>(lane), warp.now});
}

}  // namespace ptxsim
