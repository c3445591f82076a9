#include "clock.h"

#include <algorithm>

#include "program.h"

namespace ptxsim {

uint32_t Clock::missing_far(Actor actor, uint32_t lanes, Tick tick) const {
    auto it = std::lower_bound(far_.begin(), far_.end(), key(actor, 0),
                               [](const Entry& entry, uint64_t wanted) { return entry.key < wanted; });
    for (; it != far_.end() && it->key >> 6 == actor; ++it) {
        if (it->tick < tick) continue;
        const uint32_t lane = it->key & 63;
        if (lane == kEvery) return 0;
        lanes &= ~(1u << lane);
    }
    return lanes;
}

void Clock::raise_entry(Actor actor, uint32_t lane, Tick tick) {
    const uint32_t index = actor - first_;
    if (index < near_.size()) {
        if (near_[index] >= tick) return;
        if (lane == kEvery) {
            near_[index] = tick;
            if (!far_.empty()) tidy();
            return;
        }
    }
    const uint64_t wanted = key(actor, lane);
    auto it = std::lower_bound(far_.begin(), far_.end(), wanted,
                               [](const Entry& entry, uint64_t value) { return entry.key < value; });
    if (it != far_.end() && it->key == wanted) {
        it->tick = std::max(it->tick, tick);
    } else {
        far_.insert(it, {wanted, tick});
    }
    if (far_.size() >= kLanes && lane != kEvery) tidy();
}

void Clock::join(const Clock& other) {
    if (empty()) {
        *this = other;
        return;
    }
    if (first_ == other.first_ && near_.size() == other.near_.size()) {
        for (size_t i = 0; i < near_.size(); ++i) near_[i] = std::max(near_[i], other.near_[i]);
        if (other.far_.empty()) {
            if (!far_.empty()) tidy();
            return;
        }
    } else {
        for (size_t i = 0; i < other.near_.size(); ++i) {
            if (other.near_[i]) raise(other.first_ + static_cast<Actor>(i), other.near_[i]);
        }
    }
    std::vector<Entry> merged;
    merged.reserve(far_.size() + other.far_.size());
    auto mine = far_.begin();
    for (const Entry& entry : other.far_) {
        while (mine != far_.end() && mine->key < entry.key) merged.push_back(*mine++);
        if (mine != far_.end() && mine->key == entry.key) {
            merged.push_back({entry.key, std::max(entry.tick, mine->tick)});
            ++mine;
        } else {
            merged.push_back(entry);
        }
    }
    merged.insert(merged.end(), mine, far_.end());
    far_ = std::move(merged);
    tidy();
}

void Clock::tidy() {
    size_t kept = 0;
    for (size_t i = 0; i < far_.size();) {
        const Actor actor = static_cast<Actor>(far_[i].key >> 6);
        size_t end = i;
        Tick all = 0, least = ~0u;
        int lanes = 0;
        for (; end < far_.size() && far_[end].key >> 6 == actor; ++end) {
            if ((far_[end].key & 63) == kEvery) {
                all = far_[end].tick;
            } else {
                least = std::min(least, far_[end].tick);
                ++lanes;
            }
        }
        if (lanes == kLanes) all = std::max(all, least);
        const uint32_t index = actor - first_;
        const bool dense = index < near_.size();
        if (dense) all = near_[index] = std::max(near_[index], all);
        for (; i < end; ++i) {
            const uint32_t lane = far_[i].key & 63;
            if (lane != kEvery && far_[i].tick > all) far_[kept++] = far_[i];
        }
        // At most one entry per actor is added, and only where at least one was dropped.
        if (!dense && all) far_[kept++] = {key(actor, kEvery), all};
    }
    far_.resize(kept);
}

void Clock::copy_range(Actor from, uint32_t count, uint32_t distance) {
    for (uint32_t i = 0; i < count; ++i) {
        Tick& target = near_[from - first_ + i + distance];
        target = std::max(target, near_[from - first_ + i]);
    }
    std::vector<Entry> lanes;
    for (const Entry& entry : far_) {
        const Actor actor = static_cast<Actor>(entry.key >> 6);
        if (actor - from < count) lanes.push_back({entry.key + (uint64_t{distance} << 6), entry.tick});
    }
    for (const Entry& entry : lanes) {
        raise_entry(static_cast<Actor>(entry.key >> 6), entry.key & 63, entry.tick);
    }
}

}  // namespace ptxsim
