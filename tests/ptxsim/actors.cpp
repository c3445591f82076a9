#include "actors.h"

#include <algorithm>
#include <bit>

namespace ptxsim {

Actor ActorTable::add(ActorGroup group) {
    group.first = next_;
    group.cluster = static_cast<uint32_t>(groups_.size());
    next_ += group.ctas * group.layout.per_cta();
    groups_.push_back(std::move(group));
    return groups_.back().first;
}

const ActorGroup& ActorTable::group(Actor actor) const {
    auto it = std::upper_bound(groups_.begin(), groups_.end(), actor,
                               [](Actor value, const ActorGroup& group) { return value < group.first; });
    return *std::prev(it);
}

ActorKind ActorTable::kind(Actor actor) const {
    const ActorGroup& owner = group(actor);
    const uint32_t index = (actor - owner.first) % owner.layout.per_cta();
    const int kinds = owner.layout.async ? kActorKinds : owner.layout.copies ? 2 : 1;
    for (int kind = kinds - 1; kind > 0; --kind) {
        if (static_cast<ActorKind>(kind) == ActorKind::kCopy && !owner.layout.copies) continue;
        if (index >= owner.layout.offset(static_cast<ActorKind>(kind))) return static_cast<ActorKind>(kind);
    }
    return ActorKind::kWarp;
}

Actor ActorTable::fenced(Actor warp_actor) const {
    return warp_actor + group(warp_actor).layout.offset(ActorKind::kFenced);
}

Scope ActorTable::common_scope(Actor a, Actor b) const {
    const ActorGroup& ga = group(a);
    const ActorGroup& gb = group(b);
    if (ga.cluster == gb.cluster) {
        const uint32_t per_cta = ga.layout.per_cta();
        return (a - ga.first) / per_cta == (b - gb.first) / per_cta ? Scope::kCta : Scope::kCluster;
    }
    return ga.rank == gb.rank ? Scope::kGpu : Scope::kSystem;
}

std::string ActorTable::describe(Actor actor, uint32_t lanes, Actor seen_from) const {
    const ActorGroup& owner = group(actor);
    const uint32_t index = actor - owner.first, per_cta = owner.layout.per_cta();
    const ActorKind what = kind(actor);
    const uint32_t warp = index % per_cta - owner.layout.offset(what);
    std::string text;
    if (lanes != 0xffffffff && lanes) {
        const int first = std::countr_zero(lanes);
        text = (std::popcount(lanes) == 1 ? "lane " : "lanes ") + std::to_string(first);
        if (std::popcount(lanes) > 1) text += ".." + std::to_string(31 - std::countl_zero(lanes));
        text += " of ";
    }
    static constexpr const char* kNames[kActorKinds] = {"warp ",
                                                        "cp.async of warp ",
                                                        "fenced accesses of warp ",
                                                        "wgmma of warp ",
                                                        "bulk store of warp ",
                                                        "bulk store of warp ",
                                                        "load on mbarrier "};
    text += kNames[static_cast<int>(what)] + std::to_string(warp);
    const auto& id = owner.cta_ids[index / per_cta];
    text +=
        " of cta (" + std::to_string(id[0]) + "," + std::to_string(id[1]) + "," + std::to_string(id[2]) + ")";
    const ActorGroup& viewer = group(seen_from);
    if (viewer.launch != owner.launch) {
        text += " of launch " + std::to_string(owner.launch) + " (" + *owner.kernel + ")";
        if (viewer.rank != owner.rank) text += " on rank " + std::to_string(owner.rank);
    }
    return text;
}

void ActorTable::set_launch_order(const std::vector<std::vector<int>>& after) {
    before_.assign(after.size(), std::vector<bool>(after.size(), false));
    for (size_t launch = 0; launch < after.size(); ++launch) {
        for (int earlier : after[launch]) {
            before_[launch][earlier] = true;
            for (size_t i = 0; i < after.size(); ++i) {
                if (before_[earlier][i]) before_[launch][i] = true;
            }
        }
    }
}

void ActorTable::clear() {
    groups_.clear();
    before_.clear();
    next_ = 1;
}

}  // namespace ptxsim
