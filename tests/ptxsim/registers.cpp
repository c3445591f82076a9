// The slots a warp starts with: constants and special registers.
#include <cstring>

#include "machine.h"

namespace ptxsim {
namespace {

// The value in one lane; kCtaid and the like are the same in all lanes of a CTA.
uint64_t special_value(const Warp& warp, SpecialRegister which, int lane) {
    const Cta& cta = *warp.cta;
    const Launch& launch = *cta.launch->launch;
    const auto& block = launch.block;
    const uint32_t thread = warp.index * kLanes + static_cast<uint32_t>(lane);
    auto clusters = [&](int axis) { return launch.grid[axis] / launch.cluster[axis]; };
    auto in_cluster = [&](int axis) { return cta.id[axis] % launch.cluster[axis]; };
    auto cluster_id = [&](int axis) { return cta.id[axis] / launch.cluster[axis]; };
    const uint32_t ctas = launch.cluster[0] * launch.cluster[1] * launch.cluster[2];
    const uint64_t bit = uint64_t{1} << lane;
    switch (which) {
        case SpecialRegister::kTidX:
            return thread % block[0];
        case SpecialRegister::kTidY:
            return thread / block[0] % block[1];
        case SpecialRegister::kTidZ:
            return thread / block[0] / block[1];
        case SpecialRegister::kNtidX:
            return block[0];
        case SpecialRegister::kNtidY:
            return block[1];
        case SpecialRegister::kNtidZ:
            return block[2];
        case SpecialRegister::kCtaidX:
            return cta.id[0];
        case SpecialRegister::kCtaidY:
            return cta.id[1];
        case SpecialRegister::kCtaidZ:
            return cta.id[2];
        case SpecialRegister::kNctaidX:
            return launch.grid[0];
        case SpecialRegister::kNctaidY:
            return launch.grid[1];
        case SpecialRegister::kNctaidZ:
            return launch.grid[2];
        case SpecialRegister::kClusteridX:
            return cluster_id(0);
        case SpecialRegister::kClusteridY:
            return cluster_id(1);
        case SpecialRegister::kClusteridZ:
            return cluster_id(2);
        case SpecialRegister::kNclusteridX:
            return clusters(0);
        case SpecialRegister::kNclusteridY:
            return clusters(1);
        case SpecialRegister::kNclusteridZ:
            return clusters(2);
        case SpecialRegister::kClusterCtaidX:
            return in_cluster(0);
        case SpecialRegister::kClusterCtaidY:
            return in_cluster(1);
        case SpecialRegister::kClusterCtaidZ:
            return in_cluster(2);
        case SpecialRegister::kClusterNctaidX:
            return launch.cluster[0];
        case SpecialRegister::kClusterNctaidY:
            return launch.cluster[1];
        case SpecialRegister::kClusterNctaidZ:
            return launch.cluster[2];
        case SpecialRegister::kClusterCtarank:
            return cta.rank;
        case SpecialRegister::kClusterNctarank:
            return ctas;
        case SpecialRegister::kIsExplicitCluster:
            return ctas > 1 || launch.kernel->explicit_cluster;
        case SpecialRegister::kLaneid:
            return static_cast<uint64_t>(lane);
        case SpecialRegister::kWarpid:
            return warp.index;
        case SpecialRegister::kNwarpid:
            return cta.warps.size();
        case SpecialRegister::kSmid:
            return (cta.cluster->first_actor / cta.cluster->layout.per_cta()) % 132;
        case SpecialRegister::kNsmid:
            return 132;
        case SpecialRegister::kGridid:
            return cta.launch->index;
        case SpecialRegister::kLanemaskEq:
            return bit;
        case SpecialRegister::kLanemaskLe:
            return (bit << 1) - 1;
        case SpecialRegister::kLanemaskLt:
            return bit - 1;
        case SpecialRegister::kLanemaskGe:
            return static_cast<uint32_t>(~(bit - 1));
        case SpecialRegister::kLanemaskGt:
            return static_cast<uint32_t>(~((bit << 1) - 1));
        case SpecialRegister::kDynamicSmemSize:
            return launch.dynamic_shared;
        case SpecialRegister::kTotalSmemSize:
            return cta.shared_end;
        case SpecialRegister::kClock:
        case SpecialRegister::kClock64:
        case SpecialRegister::kGlobalTimer:
            break;
    }
    throw Fault("UNSUPPORTED", "a timer as a register that does not change");
}

}  // namespace

void Machine::fill_registers(Warp& warp) {
    const Kernel& kernel = *warp.cta->launch->launch->kernel;
    for (const auto& [slot, constant] : kernel.constants) {
        uint64_t* lanes = warp.lanes(slot);
        for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = constant;
        warp.defined[slot] = 0xffffffff;
    }
    for (const auto& [slot, which] : kernel.special_registers) {
        uint64_t* lanes = warp.lanes(slot);
        for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = special_value(warp, which, lane);
        warp.defined[slot] = 0xffffffff;
    }
}

}  // namespace ptxsim
