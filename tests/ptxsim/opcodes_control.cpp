// Branches, barriers and warp collectives.
#include "opcodes.h"

namespace ptxsim {
namespace {

// bar.* always, barrier.* with .aligned: all threads of the warp execute it together.
const char* mark_aligned(Instruction& instruction) {
    instruction.aligned = true;
    return nullptr;
}

const char* check_register_count(Instruction& instruction) {
    const int64_t count = instruction.immediates[0];
    return count >= 24 && count <= 256 && count % 8 == 0 ? nullptr
                                                         : "the count must be a multiple of 8 in 24..256";
}

const char* acquire_at_cluster(Instruction& instruction) {
    instruction.semantics = Semantics::kAcquire;
    return nullptr;
}

const char* release_at_cluster(Instruction& instruction) {
    if (instruction.semantics == Semantics::kWeak) instruction.semantics = Semantics::kRelease;
    return nullptr;
}

}  // namespace

std::vector<FormText> control_forms() {
    return {
        {"bra [.uni]", "l", Opcode::kBranch},
        {"brx .idx [.uni]", "u l", Opcode::kBranchIndexed},
        {"ret [.uni]", "", Opcode::kReturn},
        {"exit", "", Opcode::kReturn},
        {"trap", "", Opcode::kTrap},
        {"nanosleep .u32", "u", Opcode::kNop},
        {"setmaxnreg .inc|.dec .sync .aligned .u32", "i", Opcode::kSetMaxNReg, nullptr, check_register_count},
        {"griddepcontrol .launch_dependents", "", Opcode::kGridDepLaunch},
        {"griddepcontrol .wait", "", Opcode::kGridDepWait},

        {"bar [.cta] .sync", "u / u u", Opcode::kBarrier, nullptr, mark_aligned},
        {"bar [.cta] .arrive", "u u", Opcode::kBarrierArrive, nullptr, mark_aligned},
        {"bar [.cta] .red .popc .u32", "d u q / d u u q", Opcode::kBarrierReduce, nullptr, mark_aligned},
        {"bar [.cta] .red .and|.or .pred", "p u q / p u u q", Opcode::kBarrierReduce, nullptr, mark_aligned},
        {"barrier [.cta] .sync [.aligned]", "u / u u", Opcode::kBarrier},
        {"barrier [.cta] .arrive [.aligned]", "u u", Opcode::kBarrierArrive},
        {"barrier [.cta] .red .popc [.aligned] .u32", "d u q / d u u q", Opcode::kBarrierReduce},
        {"barrier [.cta] .red .and|.or [.aligned] .pred", "p u q / p u u q", Opcode::kBarrierReduce},
        {"bar .warp .sync", "k", Opcode::kWarpSync},
        {"barrier .cluster .arrive [.release|.relaxed] [.aligned]", "", Opcode::kClusterArrive, nullptr,
         release_at_cluster},
        {"barrier .cluster .wait [.acquire] [.aligned]", "", Opcode::kClusterWait, nullptr,
         acquire_at_cluster},

        {"shfl .sync .up|.down|.bfly|.idx .b32", "d a u u k / d|p a u u k", Opcode::kShuffle},
        {"vote .sync .all|.any|.uni .pred", "p q k", Opcode::kVote},
        {"vote .sync .ballot .b32", "d q k", Opcode::kVote},
        {"match .any .sync .b32|.b64", "d32 a k", Opcode::kMatch},
        {"match .all .sync .b32|.b64", "d32 a k / d32|p a k", Opcode::kMatch},
        {"redux .sync .add|.min|.max .u32|.s32", "d a k", Opcode::kRedux},
        {"redux .sync .and|.or|.xor .b32", "d a k", Opcode::kRedux},
        {"activemask .b32", "d", Opcode::kActiveMask},
        {"elect .sync", "d32_|p k", Opcode::kElect},
    };
}

}  // namespace ptxsim
