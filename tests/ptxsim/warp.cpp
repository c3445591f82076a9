#include "warp.h"

#include <bit>

namespace ptxsim {

void Warp::publish(Clock& target, uint32_t mask) const {
    target.join(known);
    for (uint32_t rest = mask & more_lanes; rest; rest &= rest - 1) {
        target.join(*more[std::countr_zero(rest)]);
    }
    publish_accesses(target, mask);
}

void Warp::publish_accesses(Clock& target, uint32_t mask) const {
    if (mask == initial) {
        target.raise(actor, now);
        return;
    }
    for (uint32_t rest = mask; rest; rest &= rest - 1) target.raise_lane(actor, std::countr_zero(rest), now);
}

void Warp::learn(const Clock& clock, uint32_t mask) {
    if ((alive & ~mask) == 0) {
        known.join(clock);
        return;
    }
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const int lane = std::countr_zero(rest);
        if (!more[lane]) more[lane] = std::make_unique<Clock>();
        more[lane]->join(clock);
    }
    more_lanes |= mask;
}

void Warp::forget_differences() {
    for (uint32_t rest = more_lanes; rest; rest &= rest - 1) more[std::countr_zero(rest)].reset();
    more_lanes = 0;
}

void Warp::synchronise_lanes(uint32_t mask) {
    if ((alive & ~mask) == 0) {
        for (uint32_t rest = more_lanes; rest; rest &= rest - 1) {
            known.join(*more[std::countr_zero(rest)]);
        }
        forget_differences();
        publish_accesses(known, mask);
    } else {
        Clock together;
        for (uint32_t rest = mask; rest; rest &= rest - 1) {
            const int lane = std::countr_zero(rest);
            if (more[lane]) together.join(*more[lane]);
            together.raise_lane(actor, lane, now);
        }
        learn(together, mask);
    }
    tick();
}

void Warp::learn_own_copies(int lane, Actor copies_actor, Tick tick) {
    if (!more[lane]) more[lane] = std::make_unique<Clock>();
    more[lane]->raise_lane(copies_actor, lane, tick);
    more_lanes |= 1u << lane;
}

}  // namespace ptxsim
