// The asynchronous engine: what runs beside the warps of a Hopper kernel, and what it keeps for each warp,
// CTA and cluster. One file a subject: mbarrier, bulk_copy and tensor_copy (TMA), wgmma, cluster_barrier,
// proxy.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "machine.h"

namespace ptxsim {

// An mbarrier object. `arriving` is what the arrivals of the current phase publish, `completed` what those of
// the phases before did: a thread that waits for a phase must not learn of the next one's arrivals.
struct Mbarrier {
    uint32_t expected = 0;
    int64_t pending = 0;
    int64_t tx = 0;
    uint64_t phase = 0;
    Clock arriving, completed;
    bool visible_to_proxy = false;  // its init is: fence.mbarrier_init or fence.proxy.async came after
    Actor init_actor = 0;           // who initialised it
    uint8_t init_lane = 0;
    Tick init_tick = 0;
    std::optional<uint32_t> loads;  // index of the actor that stands for loads completing here
    Tick load_tick = 0;
};

struct BulkOp;
struct WgmmaOp;

struct EngineWarp : AsyncWarpState {
    // Bulk stores: per lane those not committed yet, and the committed groups in flight.
    std::array<std::vector<std::shared_ptr<BulkOp>>, kLanes> open_stores;
    std::array<std::deque<std::vector<std::shared_ptr<BulkOp>>>, kLanes> store_groups;
    Tick store_tick = 0;

    // wgmma: those not committed, and the committed groups in flight, oldest first.
    std::vector<std::shared_ptr<WgmmaOp>> open_wgmma;
    std::deque<std::vector<std::shared_ptr<WgmmaOp>>> wgmma_groups;
    std::deque<std::shared_ptr<WgmmaOp>> wgmma_order;  // issued and not done: they finish in this order
    bool fenced = false;
    uint32_t fence_sequence = 0;
    Tick wgmma_tick = 0;
    uint64_t wgmma_count = 0;

    uint32_t registers = 0;        // by setmaxnreg; 0: as launched
    uint32_t cluster_arrived = 0;  // lanes that have arrived and not waited
    uint64_t cluster_phase = 0;    // in which they arrived
};

// What one warp of a warpgroup issued, for the other three to match.
struct IssuedWgmma {
    const Instruction* instruction;
    uint64_t a, b;
    bool accumulate;
    uint32_t seen = 0;  // warps
};

struct RemoteAccess {
    Actor actor;
    uint8_t lane;
    Tick tick;
};

struct EngineCta {
    std::map<uint32_t, Mbarrier> barriers;  // by address
    uint32_t load_actors = 0;
    std::map<uint32_t, std::map<uint64_t, IssuedWgmma>> issued;  // by warpgroup, by count
    std::vector<RemoteAccess> remote;  // by other CTAs of the cluster, not known at the last check
    Clock exit_clock;
    int64_t spare_registers = 0;  // that the CTA got at launch and its warps do not hold
};

struct EngineCluster {
    uint64_t phase = 0;
    uint32_t arrived = 0;
    Clock arriving, completed;
};

EngineWarp& engine_warp(Warp& warp);
EngineCta& engine_cta(Cta& cta);
EngineCluster& engine_cluster(Cluster& cluster);

// All that `lane` knows and has done, as a clock of its own; accesses the lane makes later are not covered.
Clock published(Warp& warp, uint32_t mask);
// The view of an actor of the engine's whose knowledge is `known`.
View view_of(const Machine& machine, const Warp& issuer, const Clock& known);
// Remembers that `warp` accessed shared memory of another CTA.
void note_remote(Warp& warp, int lane, Cta& target);
// The operand's address in one lane.
inline uint64_t address_of(const Machine& machine, const Warp& warp, const Address& address, int lane) {
    return machine.value(warp, address.base, lane) + static_cast<uint64_t>(address.offset);
}

// mbarrier.cpp
Outcome run_mbarrier_init(Machine&, Warp&, const Instruction&, uint32_t mask);
Outcome run_mbarrier_invalidate(Machine&, Warp&, const Instruction&, uint32_t mask);
Outcome run_mbarrier_arrive(Machine&, Warp&, const Instruction&, uint32_t mask);
Outcome run_mbarrier_wait(Machine&, Warp&, const Instruction&, uint32_t mask);
// The barrier at an address of shared memory; throws if there is none or its initialisation is not ordered
// before.
Mbarrier& find_mbarrier(Machine&, Warp&, int lane, Cta& cta, uint32_t offset);
void complete_tx(Machine&, Mbarrier& barrier, uint32_t offset, int64_t bytes);
void check_mbarriers_at_exit(Machine&, Cta&);

// bulk_copy.cpp
Outcome run_bulk_load(Machine&, Warp&, const Instruction&, uint32_t mask);
Outcome run_bulk_store(Machine&, Warp&, const Instruction&, uint32_t mask);
Outcome run_bulk_commit(Machine&, Warp&, const Instruction&, uint32_t mask);
Outcome run_bulk_wait(Machine&, Warp&, const Instruction&, uint32_t mask);
void check_stores_at_exit(Machine&, Warp&, uint32_t mask);

// tensor_copy.cpp
Outcome run_tensor_load(Machine&, Warp&, const Instruction&, uint32_t mask);
Outcome run_tensor_store(Machine&, Warp&, const Instruction&, uint32_t mask);

// wgmma.cpp
Outcome run_wgmma(Machine&, Warp&, const Instruction&);
Outcome run_wgmma_fence(Machine&, Warp&);
Outcome run_wgmma_commit(Machine&, Warp&);
Outcome run_wgmma_wait(Machine&, Warp&, const Instruction&);
// Any other instruction of a warp that uses wgmma: it must not touch registers that one in flight uses.
void touch_registers(Machine&, Warp&, const Instruction&);
void check_wgmma_at_exit(Machine&, Warp&);

// cluster_barrier.cpp
Outcome run_cluster_arrive(Machine&, Warp&, const Instruction&, uint32_t mask);
Outcome run_cluster_wait(Machine&, Warp&, const Instruction&, uint32_t mask);
Outcome run_mapa(Machine&, Warp&, const Instruction&, uint32_t mask);
Outcome run_cta_rank(Machine&, Warp&, const Instruction&, uint32_t mask);
void advance_cluster_barrier(Cluster&);
void check_remote_accesses_at_exit(Machine&, Cta&);

// set_max_registers.cpp
Outcome run_set_max_registers(Machine&, Warp&, const Instruction&);

// proxy.cpp
Outcome run_proxy_fence(Machine&, Warp&, const Instruction&, uint32_t mask);
Outcome run_mbarrier_init_fence(Machine&, Warp&, uint32_t mask);

}  // namespace ptxsim
