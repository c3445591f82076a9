#include <iterator>

#include "program.h"

namespace ptxsim {

int type_bytes(Type type) {
    switch (type) {
        case Type::kB8:
        case Type::kU8:
        case Type::kS8:
        case Type::kE4M3:
        case Type::kE5M2:
        case Type::kPred:
            return 1;
        case Type::kB16:
        case Type::kU16:
        case Type::kS16:
        case Type::kF16:
        case Type::kBF16:
        case Type::kE4M3x2:
        case Type::kE5M2x2:
            return 2;
        case Type::kB64:
        case Type::kU64:
        case Type::kS64:
        case Type::kF64:
            return 8;
        case Type::kB128:
            return 16;
        default:
            return 4;
    }
}

bool type_is_signed(Type type) {
    return type == Type::kS8 || type == Type::kS16 || type == Type::kS32 || type == Type::kS64;
}

bool type_is_float(Type type) {
    switch (type) {
        case Type::kF16:
        case Type::kF16x2:
        case Type::kBF16:
        case Type::kBF16x2:
        case Type::kF32:
        case Type::kF64:
            return true;
        default:
            return false;
    }
}

const char* type_name(Type type) {
    static constexpr const char* kNames[] = {
        "none", "b8",  "b16", "b32",  "b64",  "b128",   "u8",     "u16",  "u32",
        "u64",  "s8",  "s16", "s32",  "s64",  "f16",    "f16x2",  "bf16", "bf16x2",
        "tf32", "f32", "f64", "e4m3", "e5m2", "e4m3x2", "e5m2x2", "pred",
    };
    return kNames[static_cast<int>(type)];
}

const char* opcode_name(Opcode opcode) {
    static constexpr const char* kNames[] = {
        "Plain",
        "Nop",
        "Load",
        "Store",
        "Atomic",
        "CpAsync",
        "CpAsyncCommit",
        "CpAsyncWait",
        "CpAsyncMbarrierArrive",
        "LoadMatrix",
        "StoreMatrix",
        "Fence",
        "ProxyFence",
        "MbarrierInitFence",
        "Mapa",
        "GetCtaRank",
        "Branch",
        "BranchIndexed",
        "Return",
        "Trap",
        "AssertFail",
        "SetMaxNReg",
        "ReadTimer",
        "GridDepLaunch",
        "GridDepWait",
        "Barrier",
        "BarrierArrive",
        "BarrierReduce",
        "WarpSync",
        "ClusterArrive",
        "ClusterWait",
        "Shuffle",
        "Vote",
        "Match",
        "Redux",
        "ActiveMask",
        "Elect",
        "MbarrierInit",
        "MbarrierInvalidate",
        "MbarrierArrive",
        "MbarrierExpectTx",
        "MbarrierCompleteTx",
        "MbarrierWait",
        "BulkLoad",
        "BulkStore",
        "BulkReduce",
        "TensorLoad",
        "TensorStore",
        "TensorReduce",
        "BulkCommit",
        "BulkWait",
        "Mma",
        "Wgmma",
        "WgmmaFence",
        "WgmmaCommit",
        "WgmmaWait",
    };
    static_assert(std::size(kNames) == static_cast<size_t>(Opcode::kWgmmaWait) + 1);
    return kNames[static_cast<int>(opcode)];
}

}  // namespace ptxsim
