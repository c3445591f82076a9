// A warp: registers, a program counter for each lane, and what its lanes know of the rest of the world.
#pragma once
#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <random>
#include <vector>

#include "async.h"
#include "clock.h"
#include "program.h"
#include "shadow.h"

namespace ptxsim {

struct CopyBatch;        // cp_async.h
struct AsyncWarpState {  // what the asynchronous engine keeps for a warp
    virtual ~AsyncWarpState() = default;
};

// What a fence lets later relaxed writes of the lane release.
struct FenceState {
    std::shared_ptr<const Clock> known;
    Scope scope = Scope::kNone;
};

struct Warp {
    Cta* cta = nullptr;
    uint32_t index = 0;
    Actor actor = 0;

    // Lanes. A lane of `alive` runs unless it is in one of the other sets.
    uint32_t initial = 0, alive = 0;
    uint32_t at_barrier = 0;  // in bar.sync or bar.red
    uint32_t converging = 0;  // at an instruction that other lanes must join
    uint32_t blocked = 0;     // by blockers[lane]
    std::array<int32_t, kLanes> pc{};
    std::array<std::unique_ptr<Blocker>, kLanes> blockers;
    int64_t held_until = 0;  // round, by the adversarial scheduler

    std::vector<uint64_t> registers;            // slot * kLanes + lane
    std::vector<uint32_t> defined;              // per slot, the lanes that have written it
    std::vector<uint8_t> local, local_written;  // lane * frame + offset

    // Knowledge. `known` is common to all lanes; `more[lane]` is what one lane knows beyond it.
    Tick now = 1;
    Clock known;
    std::array<std::unique_ptr<Clock>, kLanes> more;
    uint32_t more_lanes = 0;
    std::array<std::unique_ptr<Clock>, kLanes>
        observed;  // released values read without acquire, until a fence
    uint32_t observed_lanes = 0;
    std::array<FenceState, kLanes> fences;

    // cp.async.
    Tick copy_now = 0;
    std::vector<std::shared_ptr<CopyBatch>> copies;
    std::array<uint32_t, kLanes> copy_group{};  // groups committed so far

    // Registers that a wgmma in flight uses; sequence numbers of register writes for its fence rule.
    int busy_registers = 0;
    std::vector<uint16_t> busy;
    std::vector<uint32_t> last_touch;
    uint32_t sequence = 1;
    std::unique_ptr<AsyncWarpState> async;

    uint32_t runnable() const { return alive & ~(at_barrier | converging | blocked); }
    uint64_t* lanes(Slot slot) { return &registers[static_cast<size_t>(slot) * kLanes]; }
    const uint64_t* lanes(Slot slot) const { return &registers[static_cast<size_t>(slot) * kLanes]; }
    void set_defined(Slot slot, uint32_t mask) { defined[slot] |= mask; }

    // Joins into `target` all that the lanes of `mask` know and have done.
    void publish(Clock& target, uint32_t mask) const;
    // Only what they have done. Lanes that have exited publish nothing any more.
    void publish_accesses(Clock& target, uint32_t mask) const;
    // The lanes of `mask` learn `clock`.
    void learn(const Clock& clock, uint32_t mask);
    // The lanes of `mask` learn from each other.
    void synchronise_lanes(uint32_t mask);
    // What single lanes know beyond the others has become common knowledge.
    void forget_differences();
    // Later accesses are not covered by what was published so far.
    void tick() { ++now; }
    void learn_own_copies(int lane, Actor copies, Tick tick);
};

}  // namespace ptxsim
