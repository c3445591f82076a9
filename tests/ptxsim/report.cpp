#include "report.h"

#include <bit>
#include <cstdarg>
#include <cstdio>

#include "machine.h"

namespace ptxsim {
namespace {

std::string cta_text(const Cta& cta) { return format("cta (%u,%u,%u)", cta.id[0], cta.id[1], cta.id[2]); }

std::string line_text(const Instruction& instruction) {
    return format("PTX line %d: %.160s", instruction.line, instruction.text.c_str());
}

const char* scope_text(Scope scope) {
    switch (scope) {
        case Scope::kCta:
            return "strong at scope cta";
        case Scope::kCluster:
            return "strong at scope cluster";
        case Scope::kGpu:
            return "strong at scope gpu";
        case Scope::kSystem:
            return "strong at scope sys";
        default:
            return "weak";
    }
}

std::string barrier_text(const Warp& warp) {
    for (size_t id = 0; id < warp.cta->barriers.size(); ++id) {
        const NamedBarrier& barrier = warp.cta->barriers[id];
        for (const NamedBarrier::Waiter& waiter : barrier.waiters) {
            if (waiter.warp != &warp) continue;
            return format("barrier %zu (%u of %u threads have come)", id, barrier.arrived, barrier.needed);
        }
    }
    return "a barrier";
}

}  // namespace

std::string format(const char* pattern, ...) {
    va_list arguments;
    va_start(arguments, pattern);
    char text[1024];
    std::vsnprintf(text, sizeof text, pattern, arguments);
    va_end(arguments);
    return text;
}

std::string where(const Machine& machine) {
    std::string text;
    if (const Warp* warp = machine.current_warp) {
        const LaunchState& launch = *warp->cta->launch;
        text = " [kernel " + launch.launch->kernel->name;
        if (machine.launches.size() > 1) text += format(" launch %u", launch.index);
        if (launch.launch->rank) text += format(" rank %d", launch.launch->rank);
        text +=
            " " + cta_text(*warp->cta) + format(" warp %u lanes %08x]", warp->index, machine.current_mask);
    }
    if (machine.current) text += " at " + line_text(*machine.current);
    return text;
}

std::string describe_conflict(const Machine& machine, const std::string& what, bool is_write,
                              const Access& access, const Conflict& conflict) {
    const std::string other = machine.actors.describe(conflict.actor, conflict.lanes, access.actor);
    const char* verb = conflict.was_write ? "write" : "read";
    std::string text = format("lane %d ", access.lane) + (is_write ? "writes " : "reads ") + what;
    switch (conflict.kind) {
        case Conflict::Kind::kNonCoherent:
            return text + (conflict.was_write
                               ? " through ld.global.nc, which " + other + " wrote in the same launch"
                               : ", which " + other + " reads through ld.global.nc in the same launch");
        case Conflict::Kind::kProxy:
            return text + " through the async proxy, written by " + other +
                   " without fence.proxy.async after it";
        case Conflict::Kind::kRace:
            break;
    }
    text += format(" (%s), not ordered after the %s (%s", scope_text(access.scope), verb,
                   scope_text(conflict.scope));
    if (conflict.line) text += format(", PTX line %d", conflict.line);
    text += ") by " + other;
    const bool both_strong = access.scope != Scope::kNone && conflict.scope != Scope::kNone;
    if (both_strong) return text + "; the scopes do not hold both threads";
    if (access.actor == conflict.actor)
        return text + " (same warp: __syncwarp orders lanes, lockstep does not)";
    return text;
}

std::string describe_waiting(const Machine& machine) {
    std::string text;
    int listed = 0;
    for (const auto& cluster : machine.live) {
        for (const auto& cta : cluster->ctas) {
            for (const auto& warp : cta->warps) {
                if (!warp->alive) continue;
                if (++listed > 12) continue;
                text += "\n  " + cta_text(*cta) + format(" warp %u", warp->index);
                if (machine.launches.size() > 1) text += format(" of launch %u", cta->launch->index);
                auto add = [&](uint32_t lanes, const std::string& reason) {
                    if (!lanes) return;
                    const int lane = std::countr_zero(lanes);
                    const Instruction& instruction = cta->launch->launch->kernel->code[warp->pc[lane]];
                    text += format(" lanes %08x wait for %s at %s", lanes, reason.c_str(),
                                   line_text(instruction).c_str());
                };
                add(warp->at_barrier, barrier_text(*warp));
                add(warp->converging, "other lanes of the warp");
                if (warp->blocked) {
                    add(warp->blocked, warp->blockers[std::countr_zero(warp->blocked)]->describe(machine));
                }
            }
        }
    }
    if (listed > 12) text += format("\n  and %d more", listed - 12);
    return text;
}

}  // namespace ptxsim
