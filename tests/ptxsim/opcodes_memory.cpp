// Loads, stores, atomics, cp.async and fences.
#include "opcodes.h"

namespace ptxsim {
namespace {

const char* complete_access(Instruction& instruction) {
    instruction.element_bytes = static_cast<uint8_t>(type_bytes(instruction.type));
    if (instruction.vector * instruction.element_bytes > 16) return "the vector exceeds 16 bytes";
    if (instruction.semantics == Semantics::kVolatile) instruction.scope = Scope::kSystem;
    return nullptr;
}

const char* complete_shared_load(Instruction& instruction) {
    if (instruction.non_coherent && instruction.space != Space::kGlobal)
        return "only global memory is read with .nc";
    return complete_access(instruction);
}

const char* complete_atomic(Instruction& instruction) {
    instruction.element_bytes = static_cast<uint8_t>(type_bytes(instruction.type));
    if (instruction.vector * instruction.element_bytes > 16) return "the vector exceeds 16 bytes";
    if (instruction.semantics == Semantics::kWeak) instruction.semantics = Semantics::kRelaxed;
    if (instruction.scope == Scope::kNone) instruction.scope = Scope::kGpu;
    return nullptr;
}

const char* complete_fence(Instruction& instruction) {
    if (instruction.semantics == Semantics::kWeak) instruction.semantics = Semantics::kAcquireRelease;
    return nullptr;
}

// membar is fence.sc of the scope.
const char* complete_membar(Instruction& instruction) {
    instruction.semantics = Semantics::kSequential;
    return nullptr;
}

const char* check_copy_16(Instruction& instruction) {
    return instruction.immediates[0] == 16 ? nullptr : "cp.async.cg copies 16 bytes";
}

const char* check_copy_any(Instruction& instruction) {
    const int64_t bytes = instruction.immediates[0];
    return bytes == 4 || bytes == 8 || bytes == 16 ? nullptr : "cp.async.ca copies 4, 8 or 16 bytes";
}

}  // namespace

std::vector<FormText> memory_forms() {
    return {
        {"ld [.weak] [$space] [$load_cache] [$L1] [$L2] [.L2::cache_hint] [$L2_prefetch] [.v2|.v4] "
         "$memory_type",
         "ds m h", Opcode::kLoad, nullptr, complete_access},
        {"ld .volatile [$space] [$L2_prefetch] [.v2|.v4] $memory_type", "ds m", Opcode::kLoad, nullptr,
         complete_access},
        {"ld .relaxed|.acquire $scope [$space] [$L1] [$L2] [.L2::cache_hint] [$L2_prefetch] [.v2|.v4] "
         "$memory_type",
         "ds m h", Opcode::kLoad, nullptr, complete_access},
        {"ld .mmio .relaxed .sys [.global] $memory_type", "ds m", Opcode::kLoad, nullptr, complete_access},
        {"ld [.weak] .global [$load_cache] .nc [$L1] [$L2] [.L2::cache_hint] [$L2_prefetch] [.v2|.v4] "
         "$memory_type",
         "ds m h", Opcode::kLoad, nullptr, complete_shared_load},
        {"ldu [.global] [.v2|.v4] $memory_type", "ds m", Opcode::kLoad, nullptr, complete_access},
        {"st [.weak] [$space] [.wb|.cg|.cs|.wt] [$L1] [$L2] [.L2::cache_hint] [.v2|.v4] $memory_type",
         "m as h", Opcode::kStore, nullptr, complete_access},
        {"st .volatile [$space] [.v2|.v4] $memory_type", "m as", Opcode::kStore, nullptr, complete_access},
        {"st .relaxed|.release $scope [$space] [$L1] [$L2] [.L2::cache_hint] [.v2|.v4] $memory_type",
         "m as h", Opcode::kStore, nullptr, complete_access},
        {"st .mmio .relaxed .sys [.global] $memory_type", "m as", Opcode::kStore, nullptr, complete_access},

        // nvcc writes the scope behind the space where it gives no order (atom.global.cta.add).
        {"atom [$order] [$scope] [$atomic_space] [$scope] .add [.L2::cache_hint] .u32|.s32|.u64|.f32|.f64",
         "d m a h", Opcode::kAtomic, nullptr, complete_atomic},
        {"atom [$order] [$scope] [$atomic_space] [$scope] .add .noftz [.L2::cache_hint] "
         ".f16|.f16x2|.bf16|.bf16x2",
         "d m a h", Opcode::kAtomic, nullptr, complete_atomic},
        {"atom [$order] [$scope] [$atomic_space] [$scope] .min|.max [.L2::cache_hint] .u32|.s32|.u64|.s64",
         "d m a h", Opcode::kAtomic, nullptr, complete_atomic},
        {"atom [$order] [$scope] [$atomic_space] [$scope] .and|.or|.xor|.exch [.L2::cache_hint] .b32|.b64",
         "d m a h", Opcode::kAtomic, nullptr, complete_atomic},
        {"atom [$order] [$scope] [$atomic_space] [$scope] .cas [.L2::cache_hint] .b16|.b32|.b64", "d m a a h",
         Opcode::kAtomic, nullptr, complete_atomic},
        {"atom [$order] [$scope] [$atomic_space] [$scope] .inc|.dec [.L2::cache_hint] .u32", "d m a h",
         Opcode::kAtomic, nullptr, complete_atomic},
        {"atom [$order] [$scope] .global [$scope] .add [.L2::cache_hint] .v2|.v4 .f32", "ds m as h",
         Opcode::kAtomic, nullptr, complete_atomic},
        {"red [.relaxed|.release] [$scope] [$atomic_space] [$scope] .add [.L2::cache_hint] "
         ".u32|.s32|.u64|.f32|.f64",
         "m a h", Opcode::kAtomic, nullptr, complete_atomic},
        {"red [.relaxed|.release] [$scope] [$atomic_space] [$scope] .add .noftz [.L2::cache_hint] "
         ".f16|.f16x2|.bf16|.bf16x2",
         "m a h", Opcode::kAtomic, nullptr, complete_atomic},
        {"red [.relaxed|.release] [$scope] [$atomic_space] [$scope] .min|.max [.L2::cache_hint] "
         ".u32|.s32|.u64|.s64",
         "m a h", Opcode::kAtomic, nullptr, complete_atomic},
        {"red [.relaxed|.release] [$scope] [$atomic_space] [$scope] .and|.or|.xor [.L2::cache_hint] "
         ".b32|.b64",
         "m a h", Opcode::kAtomic, nullptr, complete_atomic},
        {"red [.relaxed|.release] [$scope] [$atomic_space] [$scope] .inc|.dec [.L2::cache_hint] .u32",
         "m a h", Opcode::kAtomic, nullptr, complete_atomic},
        {"red [.relaxed|.release] [$scope] .global [$scope] .add [.L2::cache_hint] .v2|.v4 .f32", "m as h",
         Opcode::kAtomic, nullptr, complete_atomic},
        {"red [.relaxed|.release] [$scope] .global [$scope] .add .noftz [.L2::cache_hint] .v2|.v4|.v8 "
         ".f16|.bf16",
         "m as h", Opcode::kAtomic, nullptr, complete_atomic},
        {"red [.relaxed|.release] [$scope] .global [$scope] .add .noftz [.L2::cache_hint] .v2|.v4 "
         ".f16x2|.bf16x2",
         "m as h", Opcode::kAtomic, nullptr, complete_atomic},

        {"cp .async .ca .shared|.shared::cta .global [.L2::cache_hint] [$L2_prefetch]",
         "m m i h / m m i u h / m m i q h", Opcode::kCpAsync, nullptr, check_copy_any},
        {"cp .async .cg .shared|.shared::cta .global [.L2::cache_hint] [$L2_prefetch]",
         "m m i h / m m i u h / m m i q h", Opcode::kCpAsync, nullptr, check_copy_16},
        {"cp .async .commit_group", "", Opcode::kCpAsyncCommit},
        {"cp .async .wait_group", "i", Opcode::kCpAsyncWait},
        {"cp .async .wait_all", "", Opcode::kCpAsyncWait},
        {"cp .async .mbarrier .arrive [.noinc] [.shared|.shared::cta] .b64", "m",
         Opcode::kCpAsyncMbarrierArrive},

        {"fence [.sc|.acq_rel|.acquire|.release] $scope", "", Opcode::kFence, nullptr, complete_fence},
        {"membar .cta|.gl|.sys", "", Opcode::kFence, nullptr, complete_membar},
        {"fence .proxy .async [.global|.shared::cta|.shared::cluster]", "", Opcode::kProxyFence},
        {"fence .mbarrier_init .release .cluster", "", Opcode::kMbarrierInitFence},

        {"prefetch [.global|.local] .L1|.L2", "m", Opcode::kNop},
        {"prefetch .global .L2::evict_last|.L2::evict_normal", "m", Opcode::kNop},
        {"prefetch [.const|.param] .tensormap", "m", Opcode::kNop},
        {"prefetchu .L1", "m", Opcode::kNop},
        {"mapa [.shared::cluster] .u32|.u64", "d a u", Opcode::kMapa},
        {"getctarank [.shared::cluster] .u32|.u64", "d32 a", Opcode::kGetCtaRank},
    };
}

}  // namespace ptxsim
