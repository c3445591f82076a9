// setmaxnreg: a CTA's registers are one pool, from which its warpgroups take and to which they give back.
#include "engine.h"
#include "launch_rules.h"

namespace ptxsim {
namespace {

constexpr uint32_t kWarpgroup = 4;  // warps

int64_t& spare(Cta& cta) { return engine_cta(cta).spare_registers; }

// Registers of each of the warp's threads.
uint32_t held(Warp& warp) {
    EngineWarp& state = engine_warp(warp);
    if (state.registers == 0)
        state.registers = (most_registers(*warp.cta->launch->launch->kernel) + 7) / 8 * 8;
    return state.registers;
}

struct RegisterWait : Blocker {
    uint32_t wanted = 0;

    bool ready(Machine&, Warp& warp, int) override {
        return held(warp) == wanted || spare(*warp.cta) >= int64_t{wanted - held(warp)} * kLanes;
    }
    void resume(Machine&, Warp& warp, int) override {
        spare(*warp.cta) -= int64_t{wanted - held(warp)} * kLanes;  // the first lane takes for all
        engine_warp(warp).registers = wanted;
    }
    std::string describe(const Machine&) const override {
        return format("setmaxnreg.inc %u: registers that other warps have not given back", wanted);
    }
};

}  // namespace

Outcome run_set_max_registers(Machine& machine, Warp& warp, const Instruction& instruction) {
    const auto wanted = static_cast<uint32_t>(instruction.immediates[0]);
    if (warp.cta->warps.size() % kWarpgroup != 0)
        machine.fail("SETMAXNREG", "the CTA's warps do not form whole warpgroups of 4");
    // How many registers ptxas gave the kernel at launch is not known here, only how many it may give at
    // most: the first setmaxnreg of a warp may go either way.
    const bool first = engine_warp(warp).registers == 0;
    const uint32_t before = held(warp);
    if (!first && (instruction.increase ? wanted < before : wanted > before))
        machine.fail("SETMAXNREG", format("setmaxnreg.%s to %u from %u", instruction.increase ? "inc" : "dec",
                                          wanted, before));
    if (wanted <= before) {
        spare(*warp.cta) += int64_t{before - wanted} * kLanes;
        engine_warp(warp).registers = wanted;
        return Outcome::kAdvance;
    }
    for (int lane = 0; lane < kLanes; ++lane) {
        auto wait = std::make_unique<RegisterWait>();
        wait->wanted = wanted;
        machine.block(warp, lane, std::move(wait));
    }
    return Outcome::kYield;
}

}  // namespace ptxsim
