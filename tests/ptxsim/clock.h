// What one thread knows to have happened: for every agent, up to which of its ticks.
//
// An agent is what accesses memory on its own account: a warp, the asynchronous copies a warp has issued, and
// so on (agents.h). An agent's tick grows each time it publishes what it did (a barrier, a release, a
// __syncwarp), so "known up to tick t" covers exactly the accesses made before the t-th publication. Lanes of
// a warp share the warp's tick; what only some lanes have published is kept per lane.
//
// Agents of the own cluster are dense, a few machine words a warp; everything else (agents of other clusters,
// single lanes) is a sorted list that is empty in most programs.
#pragma once
#include <cstdint>
#include <vector>

namespace ptxsim {

using Agent = uint32_t;
using Tick = uint32_t;

class Clock {
  public:
    Clock() = default;
    Clock(Agent first, uint32_t agents) : first_(first), near_(agents, 0) {}

    // Those of `lanes` whose accesses at `tick` are not known.
    uint32_t missing(Agent agent, uint32_t lanes, Tick tick) const {
        const uint32_t index = agent - first_;
        if (index < near_.size() && near_[index] >= tick) return 0;
        return far_.empty() ? lanes : missing_far(agent, lanes, tick);
    }
    Tick near(Agent agent) const { return near_[agent - first_]; }

    void raise(Agent agent, Tick tick) { raise_entry(agent, kEvery, tick); }
    void raise_lane(Agent agent, int lane, Tick tick) {
        raise_entry(agent, static_cast<uint32_t>(lane), tick);
    }
    void join(const Clock& other);
    // Every tick known of agent a becomes known of agent a + distance too, for `count` agents from `from`.
    void copy_range(Agent from, uint32_t count, uint32_t distance);
    bool empty() const { return near_.empty() && far_.empty(); }
    void clear() {
        near_.clear();
        far_.clear();
    }

  private:
    static constexpr uint32_t kEvery = 63;  // sorts after the lanes
    struct Entry {
        uint64_t key;  // agent * 64 + lane or kEvery
        Tick tick;
    };
    static uint64_t key(Agent agent, uint32_t lane) { return uint64_t{agent} << 6 | lane; }

    uint32_t missing_far(Agent agent, uint32_t lanes, Tick tick) const;
    void raise_entry(Agent agent, uint32_t lane, Tick tick);
    void tidy();  // drops what the dense part covers; folds 32 lanes into one entry

    Agent first_ = 0;
    std::vector<Tick> near_;
    std::vector<Entry> far_;
};

}  // namespace ptxsim
