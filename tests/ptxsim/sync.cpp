// Release and acquire patterns of PTX's memory model: fences, strong loads, stores and read-modify-writes.
//
// A release (st.release, or a fence followed by a strong write) leaves what the lane knows at the address; an
// acquire (ld.acquire, or a strong read followed by a fence) takes it up, if the scope of each side holds the
// other's thread. A strong read-modify-write continues what it overwrites.
#include <algorithm>

#include "execute.h"

namespace ptxsim {
namespace {

bool acquires(Semantics semantics) {
    return semantics == Semantics::kAcquire || semantics == Semantics::kAcquireRelease ||
           semantics == Semantics::kSequential;
}

bool releases(Semantics semantics) {
    return semantics == Semantics::kRelease || semantics == Semantics::kAcquireRelease ||
           semantics == Semantics::kSequential;
}

Scope narrower(Scope a, Scope b) { return std::min(a, b); }

}  // namespace

SyncVariable* Machine::find_sync(Cta* cta, uint64_t address) {
    if (cta) {
        auto it = cta->syncs.find(static_cast<uint32_t>(address));
        return it == cta->syncs.end() ? nullptr : &it->second;
    }
    auto it = syncs.find(address);
    return it == syncs.end() ? nullptr : &it->second;
}

void Machine::synchronise_through(Warp& warp, int lane, Space space, uint64_t address,
                                  const Instruction& instruction, bool reads, bool writes) {
    const bool is_atomic = instruction.opcode == Opcode::kAtomic;
    const bool strong = is_atomic || instruction.semantics != Semantics::kWeak;
    if (!strong && syncs.empty() && warp.cta->syncs.empty()) return;
    space = resolve(space, address);
    Cta* cta = nullptr;
    if (space == Space::kShared || space == Space::kSharedCluster) {
        uint32_t offset;
        cta = &shared_target(warp, space, address, 1, offset);
        address = offset;
    } else if (space != Space::kGlobal) {
        return;
    }
    if (!strong) {  // a weak write ends what was released there
        if (cta) {
            cta->syncs.erase(static_cast<uint32_t>(address));
        } else {
            syncs.erase(address);
        }
        return;
    }
    Scope scope = instruction.scope == Scope::kNone ? Scope::kGpu : instruction.scope;
    if (instruction.semantics == Semantics::kVolatile || instruction.semantics == Semantics::kMmio) {
        scope = Scope::kSystem;
    }
    if (reads) {
        if (SyncVariable* found = find_sync(cta, address)) {
            const Scope needed = std::max(actors.common_scope(warp.actor, found->first),
                                          actors.common_scope(warp.actor, found->last));
            if (scope >= needed && found->scope >= needed) {
                if (acquires(instruction.semantics)) {
                    warp.learn(found->clock, 1u << lane);
                } else {
                    if (!warp.observed[lane]) warp.observed[lane] = std::make_unique<Clock>();
                    warp.observed[lane]->join(found->clock);
                    warp.observed_lanes |= 1u << lane;
                }
            }
        }
    }
    if (!writes) return;
    const bool releasing = releases(instruction.semantics);
    const FenceState& fence = warp.fences[lane];
    if (!releasing && fence.scope == Scope::kNone) {
        // Nothing is released; a plain strong write still hides what was there, a read-modify-write keeps it.
        if (!is_atomic) {
            if (cta) {
                cta->syncs.erase(static_cast<uint32_t>(address));
            } else {
                syncs.erase(address);
            }
        }
        return;
    }
    SyncVariable& variable = cta ? cta->syncs[static_cast<uint32_t>(address)] : syncs[address];
    const Scope mine = releasing ? scope : narrower(scope, fence.scope);
    if (!is_atomic || variable.first == 0) {
        variable = SyncVariable{};
        variable.scope = mine;
        variable.first = warp.actor;
    }
    variable.scope = narrower(variable.scope, mine);
    variable.last = warp.actor;
    if (releasing) {
        warp.publish(variable.clock, 1u << lane);
    } else {
        variable.clock.join(*fence.known);
    }
}

Outcome run_fence(Machine&, Warp& warp, const Instruction& instruction, uint32_t mask) {
    const Scope scope = instruction.scope == Scope::kNone ? Scope::kGpu : instruction.scope;
    for (uint32_t rest = mask & warp.observed_lanes; rest; rest &= rest - 1) {
        const int lane = __builtin_ctz(rest);
        warp.learn(*warp.observed[lane], 1u << lane);
        warp.observed[lane].reset();
    }
    warp.observed_lanes &= ~mask;
    // Lanes without knowledge of their own differ only in their own accesses: one copy for each lane, since a
    // lane's fence covers that lane's accesses alone.
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const int lane = __builtin_ctz(rest);
        auto known = std::make_shared<Clock>();
        warp.publish(*known, 1u << lane);
        warp.fences[lane] = {std::move(known), scope};
    }
    warp.tick();
    return Outcome::kAdvance;
}

}  // namespace ptxsim
