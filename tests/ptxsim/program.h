// What the parser produces and the machine runs: modules, kernels, decoded instructions.
//
// Every operand of an instruction is a slot of the warp's register file, a structure of arrays of 64-bit
// cells: lane l of slot s is registers[s * kLanes + l]. A constant and a special register (%tid.x) have slots
// too, which the machine fills when it makes a warp. A cell holds the register's bits zero-extended to 64,
// whatever the register's type; an integer constant may be wider than the register it stands for, so a reader
// truncates.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace ptxsim {

inline constexpr int kLanes = 32;

// Addresses. A value in the generic space carries its window in the top byte; global addresses are host
// addresses. A shared address is an offset into the CTA's shared memory, whose first kSharedReserved bytes
// belong to the system as on sm_90: address 0 is never valid. Local addresses are offsets into the lane's own
// frame.
inline constexpr uint64_t kWindowMask = 0xff00000000000000ull;
inline constexpr uint64_t kSharedWindow = 0xf100000000000000ull;  // lower 32 bits: a shared::cluster address
inline constexpr uint64_t kLocalWindow = 0xf200000000000000ull;
inline constexpr uint64_t kParamWindow = 0xf300000000000000ull;
inline constexpr uint32_t kSharedReserved = 1024;

enum class Type : uint8_t {
    kNone,
    kB8,
    kB16,
    kB32,
    kB64,
    kB128,
    kU8,
    kU16,
    kU32,
    kU64,
    kS8,
    kS16,
    kS32,
    kS64,
    kF16,
    kF16x2,
    kBF16,
    kBF16x2,
    kTF32,
    kF32,
    kF64,
    kE4M3,
    kE5M2,
    kE4M3x2,
    kE5M2x2,
    kPred,
};

int type_bytes(Type type);         // bytes in memory; a predicate counts as 1
bool type_is_signed(Type type);    // s8 .. s64
bool type_is_float(Type type);     // f16, bf16, f32, f64 and their packed forms
const char* type_name(Type type);  // "f32", without the dot

enum class Space : uint8_t { kGeneric, kGlobal, kShared, kSharedCluster, kLocal, kParam, kConst };

// What an instruction does. Lane-wise instructions of the ALU are all kPlain and run through
// Instruction::plain; the others belong to the machine. Beside each: its operands, in order ("a" an address,
// [n] an optional one).
enum class Opcode : uint8_t {
    kPlain,
    kNop,  // nanosleep, prefetch, pragma and other hints: nothing to do

    // Memory. `vector` elements of `type`, of `element_bytes` each.
    kLoad,     // outputs: `vector` slots (kNoSlot = discarded); a: source
    kStore,    // a: destination; inputs: `vector` slots
    kAtomic,   // atom and red; outputs: old value (none for red); a; inputs: b [c of cas]; `atomic`; v2/v4/v8
               // via `vector`
    kCpAsync,  // a: shared destination, global source; immediates: copy size; inputs: [source size]
               // [ignore-src predicate]
    kCpAsyncCommit,
    kCpAsyncWait,  // immediates: groups that may stay open; 0 with `wait_all` set covers uncommitted copies
                   // too
    kCpAsyncMbarrierArrive,  // a: mbarrier; `no_increment`
    kLoadMatrix,             // ldmatrix; outputs: `count` slots; a; `transposed`; b16 8x8 only
    kStoreMatrix,            // stmatrix; a; inputs: `count` slots; `transposed`
    kFence,                  // fence and membar; `semantics`, `scope`
    kProxyFence,             // fence.proxy.async*: `space` is the space named (generic: all)
    kMbarrierInitFence,      // fence.mbarrier_init.release.cluster
    kMapa,                   // outputs: address; inputs: address, cta rank; `space` kSharedCluster or generic
    kGetCtaRank,             // outputs: rank; inputs: address; `space` kSharedCluster or generic

    // Control.
    kBranch,         // target
    kBranchIndexed,  // inputs: index; targets
    kReturn,         // ret of the kernel and exit
    kTrap,
    kAssertFail,  // a: four local-memory cells: message (u64), file (u64), line (u32), function (u64);
                  // strings are global
    kSetMaxNReg,  // immediates: register count; `increase`
    kReadTimer,   // outputs: value; `special` is kClock, kClock64 or kGlobalTimer
    kGridDepLaunch,
    kGridDepWait,

    // Barriers.
    kBarrier,        // inputs: barrier [thread count]; `aligned`
    kBarrierArrive,  // inputs: barrier, thread count; `aligned`
    kBarrierReduce,  // outputs: result; inputs: barrier [thread count] predicate (last; `negated`);
                     // `reduction` kAnd kOr kPopc
    kWarpSync,       // member mask
    kClusterArrive,  // `aligned`, `semantics` (release, relaxed)
    kClusterWait,    // `aligned`, `semantics` (acquire)

    // Collectives: `member_mask` is the slot of the mask.
    kShuffle,     // outputs: d [predicate]; inputs: a, b, c; `shuffle`
    kVote,        // outputs: d; inputs: predicate (`negated`); `vote`
    kMatch,       // outputs: d [predicate]; inputs: a; `match_all`
    kRedux,       // outputs: d; inputs: a; `reduction`
    kActiveMask,  // outputs: d
    kElect,       // outputs: leader (may be kNoSlot), predicate

    // mbarrier, 64-bit objects in shared memory.
    kMbarrierInit,        // a; inputs: count
    kMbarrierInvalidate,  // a
    kMbarrierArrive,  // outputs: [token]; a; inputs: [count or tx-count]; `expect_tx`, `drop`, `no_complete`
    kMbarrierExpectTx,    // a; inputs: tx-count
    kMbarrierCompleteTx,  // a; inputs: tx-count
    kMbarrierWait,        // outputs: predicate; a; inputs: token or parity [suspend time hint]; `parity`,
                          // `test_only`

    // Bulk copies. Inputs end with the cache policy where `cache_hint` is set.
    kBulkLoad,  // to shared: a: destination, source, mbarrier; inputs: size [cta mask if `multicast`]; source
                // `source_space`
    kBulkStore,     // shared to global: a: destination, source; inputs: size
    kBulkReduce,    // as kBulkStore, with `reduction`, `type`
    kTensorLoad,    // a: destination, tensor map, mbarrier; inputs: `count` coordinates [cta mask if
                    // `multicast`]
    kTensorStore,   // a: tensor map, source; inputs: `count` coordinates
    kTensorReduce,  // as kTensorStore, with `reduction`
    kBulkCommit,
    kBulkWait,  // immediates: groups that may stay open; `read_only`

    // Tensor cores. `shape` is m, n, k; types: `type` D, `a_type`, `b_type`, `c_type`.
    kMma,    // outputs: D; inputs: A, B, C, with `input_counts` slots each; row.col layout
    kWgmma,  // outputs: D (also read); inputs: A (descriptor, or 4 registers if `a_in_registers`), B
             // descriptor, scale-d predicate; immediates: scale-a, scale-b [transpose-a, transpose-b]
    kWgmmaFence,
    kWgmmaCommit,
    kWgmmaWait,  // immediates: groups that may stay open
};

const char* opcode_name(Opcode opcode);  // "CpAsync" for kCpAsync

enum class Semantics : uint8_t {
    kWeak,
    kRelaxed,
    kAcquire,
    kRelease,
    kAcquireRelease,
    kSequential,
    kVolatile,
    kMmio
};
enum class Scope : uint8_t { kNone, kCta, kCluster, kGpu, kSystem };
enum class Rounding : uint8_t { kNone, kNearest, kZero, kDown, kUp, kNearestAway };
enum class AtomicOp : uint8_t {
    kAdd,
    kMin,
    kMax,
    kAnd,
    kOr,
    kXor,
    kExchange,
    kCompareSwap,
    kIncrement,
    kDecrement
};
enum class Reduction : uint8_t { kAdd, kMin, kMax, kAnd, kOr, kXor, kPopc, kIncrement, kDecrement };
enum class Shuffle : uint8_t { kUp, kDown, kButterfly, kIndex };
enum class Vote : uint8_t { kAll, kAny, kUniform, kBallot };
enum class Compare : uint8_t {
    kEq,
    kNe,
    kLt,
    kLe,
    kGt,
    kGe,
    kLo,
    kLs,
    kHi,
    kHs,
    kEqu,
    kNeu,
    kLtu,
    kLeu,
    kGtu,
    kGeu,
    kNum,
    kNan,
};
enum class BoolOp : uint8_t { kNone, kAnd, kOr, kXor };
enum class MulPart : uint8_t { kLow, kHigh, kWide };
enum class PermuteMode : uint8_t {
    kIndex,
    kForward4,
    kBackward4,
    kReplicate8,
    kEdgeLeft,
    kEdgeRight,
    kReplicate16
};
enum class TestProperty : uint8_t { kFinite, kInfinite, kNumber, kNotANumber, kNormal, kSubnormal };

enum class SpecialRegister : uint8_t {
    kTidX,
    kTidY,
    kTidZ,
    kNtidX,
    kNtidY,
    kNtidZ,
    kCtaidX,
    kCtaidY,
    kCtaidZ,
    kNctaidX,
    kNctaidY,
    kNctaidZ,
    kClusteridX,
    kClusteridY,
    kClusteridZ,
    kNclusteridX,
    kNclusteridY,
    kNclusteridZ,
    kClusterCtaidX,
    kClusterCtaidY,
    kClusterCtaidZ,
    kClusterNctaidX,
    kClusterNctaidY,
    kClusterNctaidZ,
    kClusterCtarank,
    kClusterNctarank,
    kIsExplicitCluster,
    kLaneid,
    kWarpid,
    kNwarpid,
    kSmid,
    kNsmid,
    kGridid,
    kLanemaskEq,
    kLanemaskLe,
    kLanemaskLt,
    kLanemaskGe,
    kLanemaskGt,
    kDynamicSmemSize,
    kTotalSmemSize,
    kClock,
    kClock64,
    kGlobalTimer,  // only in Instruction::special: these change while a kernel runs
};

using Slot = int32_t;
inline constexpr Slot kNoSlot = -1;  // the operand "_"

struct Address {
    Slot base = kNoSlot;  // never kNoSlot in a decoded instruction: an absolute address has a constant slot
    int64_t offset = 0;
};

struct Instruction;
// Runs the lane-wise instruction for the lanes of `mask` (the guard is already applied). Throws Fault.
using PlainFunction = void (*)(const Instruction& instruction, uint64_t* registers, uint32_t mask);

struct Instruction {
    PlainFunction plain = nullptr;  // set exactly when opcode is kPlain
    Opcode opcode = Opcode::kNop;
    bool guard_negated = false;  // @!p
    bool negated = false;        // the instruction's predicate operand is written !p
    Slot guard = kNoSlot;
    std::vector<Slot> outputs, inputs;
    std::vector<Address> addresses;
    std::vector<int64_t> immediates;
    Slot member_mask = kNoSlot;

    Type type = Type::kNone;         // the first type qualifier
    Type source_type = Type::kNone;  // the second (cvt, set, mul.wide keeps one)
    Type a_type = Type::kNone, b_type = Type::kNone, c_type = Type::kNone;
    uint8_t output_bits =
        0;  // declared width of the output registers (1 for a predicate); results are cut to it
    uint8_t element_bytes = 0, vector = 1;
    Space space = Space::kGeneric, source_space = Space::kGeneric;
    Semantics semantics = Semantics::kWeak;
    Scope scope = Scope::kNone;
    Rounding rounding = Rounding::kNone;
    AtomicOp atomic = AtomicOp::kAdd;
    Reduction reduction = Reduction::kAdd;
    Shuffle shuffle = Shuffle::kIndex;
    Vote vote = Vote::kAll;
    Compare compare = Compare::kEq;
    BoolOp bool_op = BoolOp::kNone;
    MulPart part = MulPart::kLow;
    PermuteMode permute = PermuteMode::kIndex;
    TestProperty test = TestProperty::kFinite;
    SpecialRegister special = SpecialRegister::kTidX;

    bool aligned = false;       // all threads of the warp must execute it together
    bool non_coherent = false;  // ld.global.nc
    bool saturate = false, flush_subnormals = false, approximate = false;
    bool saturate_finite = false, relu = false, nan = false, xorsign_abs = false, round_to_integer = false;
    bool shift_amount = false, wrap = false, right = false, to_space = false;
    bool transposed = false, match_all = false, increase = false, wait_all = false;
    bool expect_tx = false, drop = false, no_complete = false, parity = false, test_only = false;
    bool multicast = false, cache_hint = false, read_only = false, a_in_registers = false;
    uint8_t count = 0;                      // matrices of ldmatrix, dimensions of a tensor map
    std::array<int16_t, 3> shape{};         // m, n, k
    std::array<uint8_t, 3> input_counts{};  // slots of A, B, C
    int32_t target = -1;                    // index into Kernel::code
    std::vector<int32_t> targets;           // of brx.idx
    int32_t line = 0;                       // in the PTX text
    std::string text;
};

struct Parameter {
    std::string name;
    uint32_t offset = 0, bytes = 0;
};

struct Kernel {
    std::string name;
    std::vector<Parameter> parameters;
    uint32_t parameter_bytes = 0;
    std::vector<Instruction> code;  // ends with a kReturn
    int32_t slots = 0;
    std::vector<std::pair<Slot, uint64_t>> constants;
    std::vector<std::pair<Slot, SpecialRegister>> special_registers;
    std::vector<uint8_t> slot_bits;  // per slot: declared width (1 predicate, 16, 32, 64); 0 for constants
    std::vector<std::string> slot_names;  // per slot: "%r12"; empty for constants
    uint32_t static_shared_bytes = 0;     // static variables occupy [kSharedReserved, kSharedReserved + this)
    uint32_t dynamic_shared_address = 0;  // where extern shared memory starts; total = this + dynamic bytes
    uint32_t local_bytes = 0;             // per lane
    std::array<int32_t, 3> max_threads{}, required_threads{};  // .maxntid, .reqntid; 0: not given
    std::array<int32_t, 3> cluster{};                          // .reqnctapercluster; 0: not given
    int32_t max_cluster_rank = 0;                              // .maxclusterrank
    bool explicit_cluster = false;
    int32_t min_ctas = 0, max_registers = 0;  // .minnctapersm, .maxnreg; 0: not given
};

// A module-level variable in global or constant memory; its address is the host's.
struct Variable {
    std::string name;
    Space space = Space::kGlobal;
    std::vector<uint8_t> storage;  // larger than bytes, to allow for the alignment
    uint8_t* data = nullptr;
    uint64_t bytes = 0;
};

struct Module {
    std::string version, target;  // "9.0", "sm_90a"
    std::map<std::string, std::unique_ptr<Kernel>> kernels;
    std::map<std::string, std::unique_ptr<Variable>> variables;
};

}  // namespace ptxsim
