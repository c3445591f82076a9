// Who accesses memory: numbers for agents, and what can be said of one from its number alone.
//
// A cluster gets consecutive numbers when it starts. Within it, each CTA has, for each kind that its kernel
// needs, one agent a warp (and for kBarrier one per mbarrier):
//   agent = first + cta * per_cta + kind_offset + warp
#pragma once
#include <array>
#include <string>
#include <vector>

#include "clock.h"
#include "program.h"

namespace ptxsim {

enum class AgentKind : uint8_t {
    kWarp,       // ordinary loads and stores of a warp's lanes
    kCopy,       // cp.async of a warp
    kFenced,     // not an accessor: a warp's ordinary accesses, as far as a proxy fence has covered them
    kWgmma,      // wgmma of a warp
    kBulk,       // bulk and tensor stores of a warp: what they read
    kBulkWrite,  // and what they write, which is known to be done later
    kBarrier,    // bulk and tensor loads that complete on an mbarrier; `warp` counts barriers
};
inline constexpr int kAgentKinds = 7;
inline constexpr uint32_t kMbarrierAgents = 48;  // mbarriers of a CTA that complete asynchronous loads

struct AgentLayout {
    uint32_t warps = 1;
    bool copies = false, async = false;

    uint32_t offset(AgentKind kind) const {
        const uint32_t row = kind == AgentKind::kWarp   ? 0
                             : kind == AgentKind::kCopy ? 1
                                                        : static_cast<uint32_t>(kind) - (copies ? 0 : 1);
        return row * warps;
    }
    uint32_t per_cta() const {
        if (!async) return warps * (copies ? 2 : 1);
        return offset(AgentKind::kBarrier) + kMbarrierAgents;
    }
};

struct AgentGroup {  // the agents of one cluster
    Agent first = 0;
    AgentLayout layout;
    uint32_t ctas = 1, launch = 0, cluster = 0;
    int rank = 0;
    const std::string* kernel = nullptr;  // its name
    std::vector<std::array<uint32_t, 3>> cta_ids;
};

class AgentTable {
  public:
    // Starts a cluster; returns its first agent.
    Agent add(AgentGroup group);
    const AgentGroup& group(Agent agent) const;
    AgentKind kind(Agent agent) const;
    // The agent that stands for the proxy-fenced accesses of a warp's agent.
    Agent fenced(Agent warp_agent) const;
    // The narrowest scope that holds both.
    Scope common_scope(Agent a, Agent b) const;
    bool same_cta(Agent a, Agent b) const { return common_scope(a, b) == Scope::kCta; }
    // "lane 3 of warp 2 of cta (0,0,0)"; names the kernel if it is not that of `seen_from`.
    std::string describe(Agent agent, uint32_t lanes, Agent seen_from) const;

    // Everything launch `a` did happened before launch `b` began.
    bool launch_ordered(uint32_t a, uint32_t b) const { return before_[b][a]; }
    bool several_launches() const { return before_.size() > 1; }
    // For each launch the launches it comes after, directly; earlier ones only.
    void set_launch_order(const std::vector<std::vector<int>>& after);
    Agent next() const { return next_; }
    void clear();

  private:
    std::vector<AgentGroup> groups_;
    std::vector<std::vector<bool>> before_;
    Agent next_ = 1;
};

}  // namespace ptxsim
