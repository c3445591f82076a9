// mbarrier objects, bulk copies and TMA.
#include "opcodes.h"

namespace ptxsim {
namespace {

// A shared::cluster barrier gives no token.
const char* check_remote_arrive(Instruction& instruction) {
    if (instruction.space == Space::kSharedCluster && !instruction.outputs.empty() &&
        instruction.outputs[0] != kNoSlot)
        return "an arrive on .shared::cluster gives no state: write _";
    return nullptr;
}

}  // namespace

std::vector<FormText> async_forms() {
    return {
        {"mbarrier .init [.shared|.shared::cta] .b64", "m u", Opcode::kMbarrierInit},
        {"mbarrier .inval [.shared|.shared::cta] .b64", "m", Opcode::kMbarrierInvalidate},
        {"mbarrier .expect_tx [.relaxed] [.cta|.cluster] [$shared] .b64", "m u", Opcode::kMbarrierExpectTx},
        {"mbarrier .complete_tx [.relaxed] [.cta|.cluster] [$shared] .b64", "m u",
         Opcode::kMbarrierCompleteTx},
        {"mbarrier .arrive .expect_tx [.release|.relaxed] [.cta|.cluster] [$shared] .b64", "d_ m u",
         Opcode::kMbarrierArrive, nullptr, check_remote_arrive},
        {"mbarrier .arrive_drop .expect_tx [.release|.relaxed] [.cta|.cluster] [$shared] .b64", "d_ m u",
         Opcode::kMbarrierArrive, nullptr, check_remote_arrive},
        {"mbarrier .arrive .noComplete [.release] [.cta] [.shared|.shared::cta] .b64", "d_ m u",
         Opcode::kMbarrierArrive},
        {"mbarrier .arrive [.release|.relaxed] [.cta|.cluster] [$shared] .b64", "d_ m / d_ m u",
         Opcode::kMbarrierArrive, nullptr, check_remote_arrive},
        {"mbarrier .arrive_drop [.release|.relaxed] [.cta|.cluster] [$shared] .b64", "d_ m / d_ m u",
         Opcode::kMbarrierArrive, nullptr, check_remote_arrive},
        {"mbarrier .test_wait [.acquire|.relaxed] [.cta|.cluster] [.shared|.shared::cta] .b64", "p m b64",
         Opcode::kMbarrierWait},
        {"mbarrier .test_wait .parity [.acquire|.relaxed] [.cta|.cluster] [.shared|.shared::cta] .b64",
         "p m u", Opcode::kMbarrierWait},
        {"mbarrier .try_wait [.acquire|.relaxed] [.cta|.cluster] [.shared|.shared::cta] .b64",
         "p m b64 / p m b64 u", Opcode::kMbarrierWait},
        {"mbarrier .try_wait .parity [.acquire|.relaxed] [.cta|.cluster] [.shared|.shared::cta] .b64",
         "p m u / p m u u", Opcode::kMbarrierWait},

        {"cp .async .bulk .shared::cluster|.shared::cta .global .mbarrier::complete_tx::bytes"
         " [.multicast::cluster] [.L2::cache_hint]",
         "m m u m x h", Opcode::kBulkLoad},
        {"cp .async .bulk .shared::cluster .shared::cta .mbarrier::complete_tx::bytes", "m m u m",
         Opcode::kBulkLoad},
        {"cp .async .bulk .global .shared::cta .bulk_group [.L2::cache_hint]", "m m u h", Opcode::kBulkStore},
        {"cp .reduce .async .bulk .global .shared::cta .bulk_group [.L2::cache_hint] .add "
         ".u32|.s32|.u64|.f32|.f64",
         "m m u h", Opcode::kBulkReduce},
        {"cp .reduce .async .bulk .global .shared::cta .bulk_group [.L2::cache_hint] .add .noftz .f16|.bf16",
         "m m u h", Opcode::kBulkReduce},
        {"cp .async .bulk .prefetch .L2 .global [.L2::cache_hint]", "m u h", Opcode::kNop},
        {"cp .async .bulk .tensor .1d|.2d|.3d|.4d|.5d .shared::cluster|.shared::cta .global [.tile]"
         " .mbarrier::complete_tx::bytes [.multicast::cluster] [.L2::cache_hint]",
         "m t m x h", Opcode::kTensorLoad},
        {"cp .async .bulk .tensor .1d|.2d|.3d|.4d|.5d .global .shared::cta [.tile] .bulk_group "
         "[.L2::cache_hint]",
         "t m h", Opcode::kTensorStore},
        {"cp .reduce .async .bulk .tensor .1d|.2d|.3d|.4d|.5d .global .shared::cta .add|.min|.max [.tile]"
         " .bulk_group [.L2::cache_hint]",
         "t m h", Opcode::kTensorReduce},
        {"cp .async .bulk .prefetch .tensor .1d|.2d|.3d|.4d|.5d .L2 .global [.tile] [.L2::cache_hint]", "t h",
         Opcode::kNop},
        {"cp .async .bulk .commit_group", "", Opcode::kBulkCommit},
        {"cp .async .bulk .wait_group [.read]", "i", Opcode::kBulkWait},
    };
}

}  // namespace ptxsim
