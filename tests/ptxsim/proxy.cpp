// Fences between the generic proxy (ordinary loads and stores) and the async proxy (TMA, bulk copies, wgmma).
//
// That an access of the async proxy comes after an ordinary write is not enough: a proxy fence must lie
// between them. So each warp has a second actor for its ordinary accesses as far as a fence has covered them,
// which a fence raises to what its lane knows of the first.
#include <bit>

#include "engine.h"

namespace ptxsim {
namespace {

void cover(const Cluster& cluster, Clock& clock) {
    const uint32_t distance = cluster.layout.offset(ActorKind::kFenced);
    for (const auto& cta : cluster.ctas)
        clock.copy_range(cta->actor(ActorKind::kWarp, 0), cluster.layout.warps, distance);
}

void make_visible(const Machine& machine, Warp& warp, uint32_t mask, bool own_only) {
    for (const auto& cta : warp.cta->cluster->ctas) {
        for (auto& [offset, barrier] : engine_cta(*cta).barriers) {
            for (uint32_t rest = mask; rest && !barrier.visible_to_proxy; rest &= rest - 1) {
                const int lane = std::countr_zero(rest);
                const bool own = barrier.init_actor == warp.actor && barrier.init_lane == lane;
                barrier.visible_to_proxy =
                    own || (!own_only && machine.view(warp, lane)
                                                 .missing(barrier.init_actor, 1u << barrier.init_lane,
                                                          barrier.init_tick) == 0);
            }
        }
    }
}

}  // namespace

Outcome run_proxy_fence(Machine& machine, Warp& warp, const Instruction&, uint32_t mask) {
    const Cluster& cluster = *warp.cta->cluster;
    cover(cluster, warp.known);
    for (uint32_t rest = mask & warp.more_lanes; rest; rest &= rest - 1) {
        const int lane = std::countr_zero(rest);
        Clock all = cluster.new_clock();
        all.join(*warp.more[lane]);
        cover(cluster, all);
        warp.learn(all, 1u << lane);
    }
    const Actor fenced = machine.actors.fenced(warp.actor);
    if ((warp.alive & ~mask) == 0) {
        warp.known.raise(fenced, warp.now);
    } else {
        for (uint32_t rest = mask; rest; rest &= rest - 1)
            warp.known.raise_lane(fenced, std::countr_zero(rest), warp.now);
    }
    make_visible(machine, warp, mask, false);
    warp.tick();
    return Outcome::kAdvance;
}

Outcome run_mbarrier_init_fence(Machine& machine, Warp& warp, uint32_t mask) {
    make_visible(machine, warp, mask, true);
    return Outcome::kAdvance;
}

}  // namespace ptxsim
