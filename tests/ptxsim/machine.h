// A run: launches, the CTAs that are resident, and the scheduler that chooses at random who goes on.
//
// Everything is chosen from one seeded generator: which CTA and warp runs, for how long, which of the lanes
// of a diverged warp go first, in which order the lanes of an atomic act, when asynchronous operations
// complete. The same seed gives the same run.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "actors.h"
#include "async.h"
#include "async_engine.h"
#include "counters.h"
#include "fault.h"
#include "memory.h"
#include "options.h"
#include "prepared.h"
#include "program.h"
#include "report.h"
#include "shadow.h"
#include "sync.h"
#include "warp.h"

namespace ptxsim {

struct Launch {
    const Module* module = nullptr;
    const Kernel* kernel = nullptr;
    std::array<uint32_t, 3> grid{1, 1, 1}, block{1, 1, 1}, cluster{1, 1, 1};
    uint32_t dynamic_shared = 0;
    std::vector<uint8_t> parameters;
    int rank = 0;            // the device it runs on
    std::vector<int> after;  // indices of earlier launches that must have ended before this one starts
    Counters counters;       // filled by the run
};

// bar.sync, bar.red and bar.arrive of one barrier number.
struct NamedBarrier {
    uint32_t arrived = 0, needed = 0;
    bool counted = false;  // the instruction gives a thread count
    Clock clock;
    uint32_t popc = 0;
    bool all = true, any = false, reduces = false;
    struct Waiter {
        Warp* warp;
        uint32_t mask;
        const Instruction* instruction;
    };
    std::vector<Waiter> waiters;
};

struct Cluster;
struct LaunchState;

// States of a byte of shared memory.
inline constexpr uint8_t kInitialised = 1, kInFlight = 2, kMbarrierObject = 4;

struct Cta {
    Cluster* cluster = nullptr;
    LaunchState* launch = nullptr;
    uint32_t rank = 0;  // in the cluster
    std::array<uint32_t, 3> id{};
    uint32_t shared_end = 0;      // addresses [kSharedReserved, shared_end) exist
    std::vector<uint8_t> shared;  // by address
    std::vector<uint8_t> states;  // a byte of states for each
    std::unique_ptr<Shadow> shadow;
    std::array<NamedBarrier, 16> barriers;
    std::map<uint32_t, SyncVariable> syncs;  // released values in shared memory, by address
    std::vector<std::unique_ptr<Warp>> warps;
    int64_t held_until = 0;
    std::shared_ptr<void> async;  // what the asynchronous engine keeps for a CTA

    bool alive() const;
    Actor actor(ActorKind kind, uint32_t index) const;
};

struct Cluster {
    LaunchState* launch = nullptr;
    Actor first_actor = 0;
    ActorLayout layout;
    std::vector<std::unique_ptr<Cta>> ctas;
    std::shared_ptr<void> async;  // what the asynchronous engine keeps for a cluster

    Clock new_clock() const {
        return Clock(first_actor, layout.per_cta() * static_cast<uint32_t>(ctas.size()));
    }
};

struct LaunchState {
    Launch* launch = nullptr;
    uint32_t index = 0;
    const PreparedKernel* code = nullptr;
    uint64_t next = 0, total = 0;  // clusters
    // The order in which clusters start, a permutation: the i-th is (i * stride + offset) % total.
    uint64_t stride = 1, offset = 0;
    uint32_t live = 0;  // clusters
    Actor floor = 0;
    bool ended() const { return next == total && live == 0; }
};

// What an instruction did to the lanes that executed it.
enum class Outcome : uint8_t {
    kAdvance,  // all go on to the next instruction
    kMoved,    // the handler has set program counters and states itself
    kYield,    // as kMoved, and the warp gives up its turn
};

// What a memory access is, beside its address; the same for all lanes of an instruction.
struct Touch {
    Space space = Space::kGeneric;
    uint32_t bytes = 0;
    bool write = false;
    Access access;
};

class Machine {
  public:
    Machine(Memory& memory, const Options& options);
    ~Machine();
    // Runs the launches to their end, jointly as far as their order allows. Throws Fault, with the place in
    // the text; memory then holds whatever the kernels had written.
    void run(std::span<Launch> launches);

    // ---- for the instruction handlers

    [[noreturn]] void fail(FaultKind kind, const std::string& message) const;
    uint64_t random(uint64_t below) { return below < 2 ? 0 : rng_() % below; }
    // A random order of the lanes of the mask; returns their number.
    int shuffled_lanes(uint32_t mask, std::array<uint8_t, kLanes>& order);

    // The value of a slot in one lane; reading a register that was never written is a fault.
    uint64_t value(const Warp& warp, Slot slot, int lane) const {
        require_defined(warp, slot, 1u << lane);
        return warp.registers[static_cast<size_t>(slot) * kLanes + lane];
    }
    const uint64_t* values(const Warp& warp, Slot slot, uint32_t mask) const {
        require_defined(warp, slot, mask);
        return warp.lanes(slot);
    }
    // A value that must be the same in all lanes of the mask.
    uint64_t uniform(const Warp& warp, Slot slot, uint32_t mask, const char* what) const;
    void require_defined(const Warp& warp, Slot slot, uint32_t mask) const {
        if (mask & ~warp.defined[slot] && options.registers) undefined_register(warp, slot, mask);
    }
    [[noreturn]] void undefined_register(const Warp& warp, Slot slot, uint32_t mask) const;

    View view(const Warp& warp, int lane) const;
    // Checks one lane's access (space, alignment, bounds, permission, initialisation, races) and returns
    // where its bytes lie. `value`: the bytes a store will write, if known; equal bytes written by lanes of
    // one warp are no race. `*buffer`: a hint, kept by the caller.
    uint8_t* touch(Warp& warp, const Touch& touch, int lane, uint64_t address, const void* value,
                   Buffer*& buffer);
    // Splits a generic address into its space and the address there.
    static Space resolve(Space space, uint64_t& address);

    // Shared memory. A shared::cluster address is (rank + 1) << 24 | offset; rank + 1 == 0 is the own CTA.
    Cta& shared_target(Warp& warp, Space space, uint64_t address, uint32_t bytes, uint32_t& offset);
    void check_shared_bounds(const Cta& cta, uint64_t offset, uint64_t bytes) const;
    void shared_read(Cta& cta, uint32_t offset, uint32_t bytes, const Access& access, const View& view);
    // The same of several pieces.
    void shared_read(Cta& cta, std::span<const uint32_t> offsets, uint32_t bytes, const Access& access,
                     const View& view);
    void require_initialised(const Cta& cta, uint32_t offset, uint32_t bytes, int lane) const;
    // False if the only thing wrong is that lanes of one warp write the bytes without order, which the caller
    // may forgive.
    bool shared_write(Cta& cta, uint32_t offset, uint32_t bytes, const Access& access, const View& view,
                      bool forgive_own_warp);
    // Bounds, permission and races of a global access; returns the buffer.
    Buffer& global_touch(uint64_t address, uint32_t bytes, bool write, const Access& access, const View& view,
                         const void* value, Buffer* hint);

    // Releases and acquires through memory (sync.cpp).
    void synchronise_through(Warp& warp, int lane, Space space, uint64_t address,
                             const Instruction& instruction, bool reads, bool writes);
    SyncVariable* find_sync(Cta* cta, uint64_t address);

    // Puts lanes to wait until all that must execute the instruction have come; see converge.cpp.
    Outcome gather(Warp& warp, const Instruction& instruction, uint32_t mask);
    bool converge(Warp& warp);
    // The lanes that must execute the instruction together with `lane`; 0: it may go alone.
    uint32_t needed_lanes(const Warp& warp, const Instruction& instruction, int lane) const;
    void exit_lanes(Warp& warp, uint32_t mask);
    void block(Warp& warp, int lane, std::unique_ptr<Blocker> blocker);
    void add_async(std::shared_ptr<AsyncOp> op, Warp& warp, const Instruction& instruction);
    int64_t async_delay() { return round + static_cast<int64_t>(random(options.async_delay + 1)); }
    Counters& counters(const Warp& warp) { return warp.cta->launch->launch->counters; }

    Memory& memory;
    Options options;
    ActorTable actors;
    AsyncQueue queue;
    std::unique_ptr<AsyncEngine> engine;
    std::vector<std::unique_ptr<Cluster>> live;
    std::vector<LaunchState> launches;
    std::unordered_map<uint64_t, SyncVariable> syncs;  // released values in global memory, by address
    int64_t round = 0;

    // What is being executed: for reports.
    Warp* current_warp = nullptr;
    const Instruction* current = nullptr;
    uint32_t current_mask = 0;

  private:
    void start_clusters();
    std::unique_ptr<Cluster> make_cluster(LaunchState& state);
    void make_warp(Cta& cta, uint32_t index, uint32_t threads);
    void fill_registers(Warp& warp);
    void retire();
    bool round_of_turns();
    // Lanes of a warp that stand at one instruction.
    struct LaneGroup {
        uint32_t mask = 0;
        int32_t pc = 0;
        int32_t next_group = INT32_MAX;  // the nearest instruction ahead at which other lanes stand
        bool alone = false;              // no other lane of the warp can run
    };
    bool run_warp(Warp& warp);
    LaneGroup choose_group(const Warp& warp);
    // Runs the group until it stops, taking from the budget; true if the warp gives up its turn.
    bool run_group(Warp& warp, const LaneGroup& group, int64_t& budget);
    void run_plain(Warp& warp, const Prepared& prepared, uint32_t mask);
    bool unblock(Warp& warp);
    Outcome execute(Warp& warp, const Instruction& instruction, uint32_t mask);
    Outcome execute_converged(Warp& warp, const Instruction& instruction, uint32_t mask);
    uint32_t guard_lanes(const Warp& warp, const Prepared& prepared, uint32_t mask) const;
    [[noreturn]] void deadlock();
    void report_divergence(Warp& warp);
    Access stamped(Access access) const;
    std::string assertion_text(Warp& warp, const Instruction& instruction, int lane);

    std::mt19937_64 rng_;
    std::map<const Kernel*, std::unique_ptr<PreparedKernel>> prepared_;
    std::vector<std::unique_ptr<Cta>> spare_ctas_;
    uint64_t thread_instructions_ = 0;
};

}  // namespace ptxsim
