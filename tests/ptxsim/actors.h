// Who accesses memory: numbers for actors, and what can be said of one from its number alone.
//
// A cluster gets consecutive numbers when it starts. Within it, each CTA has, for each kind that its kernel
// needs, one actor a warp (and for kBarrier one per mbarrier):
//   actor = first + cta * per_cta + kind_offset + warp
#pragma once
#include <array>
#include <string>
#include <vector>

#include "clock.h"
#include "program.h"

namespace ptxsim {

enum class ActorKind : uint8_t {
    kWarp,       // ordinary loads and stores of a warp's lanes
    kCopy,       // cp.async of a warp
    kFenced,     // not an accessor: a warp's ordinary accesses, as far as a proxy fence has covered them
    kWgmma,      // wgmma of a warp
    kBulk,       // bulk and tensor stores of a warp: what they read
    kBulkWrite,  // and what they write, which is known to be done later
    kBarrier,    // bulk and tensor loads that complete on an mbarrier; `warp` counts barriers
};
inline constexpr int kActorKinds = 7;
inline constexpr uint32_t kMbarrierActors = 48;  // mbarriers of a CTA that complete asynchronous loads

struct ActorLayout {
    uint32_t warps = 1;
    bool copies = false, async = false;

    uint32_t offset(ActorKind kind) const {
        const uint32_t row = kind == ActorKind::kWarp   ? 0
                             : kind == ActorKind::kCopy ? 1
                                                        : static_cast<uint32_t>(kind) - (copies ? 0 : 1);
        return row * warps;
    }
    uint32_t per_cta() const {
        if (!async) return warps * (copies ? 2 : 1);
        return offset(ActorKind::kBarrier) + kMbarrierActors;
    }
};

struct ActorGroup {  // the actors of one cluster
    Actor first = 0;
    ActorLayout layout;
    uint32_t ctas = 1, launch = 0, cluster = 0;
    int rank = 0;
    const std::string* kernel = nullptr;  // its name
    std::vector<std::array<uint32_t, 3>> cta_ids;
};

class ActorTable {
  public:
    // Starts a cluster; returns its first actor.
    Actor add(ActorGroup group);
    const ActorGroup& group(Actor actor) const;
    ActorKind kind(Actor actor) const;
    // The actor that stands for the proxy-fenced accesses of a warp's actor.
    Actor fenced(Actor warp_actor) const;
    // The narrowest scope that holds both.
    Scope common_scope(Actor a, Actor b) const;
    bool same_cta(Actor a, Actor b) const { return common_scope(a, b) == Scope::kCta; }
    // "lane 3 of warp 2 of cta (0,0,0)"; names the kernel if it is not that of `seen_from`.
    std::string describe(Actor actor, uint32_t lanes, Actor seen_from) const;

    // Everything launch `a` did happened before launch `b` began.
    bool launch_ordered(uint32_t a, uint32_t b) const { return before_[b][a]; }
    bool several_launches() const { return before_.size() > 1; }
    // For each launch the launches it comes after, directly; earlier ones only.
    void set_launch_order(const std::vector<std::vector<int>>& after);
    Actor next() const { return next_; }
    void clear();

  private:
    std::vector<ActorGroup> groups_;
    std::vector<std::vector<bool>> before_;
    Actor next_ = 1;
};

}  // namespace ptxsim
