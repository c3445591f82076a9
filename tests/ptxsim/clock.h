// What one thread knows to have happened: for every actor, up to which of its ticks.
//
// An actor is what accesses memory on its own account: a warp, the asynchronous copies a warp has issued, and
// so on (actors.h). An actor's tick grows each time it publishes what it did (a barrier, a release, a
// __syncwarp), so "known up to tick t" covers exactly the accesses made before the t-th publication. Lanes of
// a warp share the warp's tick; what only some lanes have published is kept per lane.
//
// Actors of the own cluster are dense, a few machine words a warp; everything else (actors of other clusters,
// single lanes) is a sorted list that is empty in most programs.
#pragma once
#include <cstdint>
#include <vector>

namespace ptxsim {

using Actor = uint32_t;
using Tick = uint32_t;

class Clock {
  public:
    Clock() = default;
    Clock(Actor first, uint32_t actors) : first_(first), near_(actors, 0) {}

    // Those of `lanes` whose accesses at `tick` are not known.
    uint32_t missing(Actor actor, uint32_t lanes, Tick tick) const {
        const uint32_t index = actor - first_;
        if (index < near_.size() && near_[index] >= tick) return 0;
        return far_.empty() ? lanes : missing_far(actor, lanes, tick);
    }
    Tick near(Actor actor) const { return near_[actor - first_]; }

    void raise(Actor actor, Tick tick) { raise_entry(actor, kEvery, tick); }
    void raise_lane(Actor actor, int lane, Tick tick) {
        raise_entry(actor, static_cast<uint32_t>(lane), tick);
    }
    void join(const Clock& other);
    // Every tick known of actor a becomes known of actor a + distance too, for `count` actors from `from`.
    void copy_range(Actor from, uint32_t count, uint32_t distance);
    bool empty() const { return near_.empty() && far_.empty(); }
    void clear() {
        near_.clear();
        far_.clear();
    }

  private:
    static constexpr uint32_t kEvery = 63;  // sorts after the lanes
    struct Entry {
        uint64_t key;  // actor * 64 + lane or kEvery
        Tick tick;
    };
    static uint64_t key(Actor actor, uint32_t lane) { return uint64_t{actor} << 6 | lane; }

    uint32_t missing_far(Actor actor, uint32_t lanes, Tick tick) const;
    void raise_entry(Actor actor, uint32_t lane, Tick tick);
    void tidy();  // drops what the dense part covers; folds 32 lanes into one entry

    Actor first_ = 0;
    std::vector<Tick> near_;
    std::vector<Entry> far_;
};

}  // namespace ptxsim
