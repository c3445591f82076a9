#include "qualifiers.h"

#include <cstdio>
#include <map>
#include <set>

namespace ptxsim {
namespace {

const std::map<std::string, Type>& type_names() {
    static const std::map<std::string, Type> kNames = [] {
        std::map<std::string, Type> names;
        for (int i = static_cast<int>(Type::kB8); i <= static_cast<int>(Type::kPred); ++i)
            names[std::string(".") + type_name(static_cast<Type>(i))] = static_cast<Type>(i);
        return names;
    }();
    return kNames;
}

const std::map<std::string, Space>& space_names() {
    static const std::map<std::string, Space> kNames = {
        {".global", Space::kGlobal},      {".shared", Space::kShared},
        {".shared::cta", Space::kShared}, {".shared::cluster", Space::kSharedCluster},
        {".local", Space::kLocal},        {".param", Space::kParam},
        {".param::entry", Space::kParam}, {".param::func", Space::kParam},
        {".const", Space::kConst},
    };
    return kNames;
}

using Setter = void (*)(Instruction& instruction);

void set_type(Instruction& instruction, int index, Type type) {
    Type* const fields[] = {&instruction.type, &instruction.source_type, &instruction.b_type,
                            &instruction.c_type};
    if (index < 4) *fields[index] = type;
}

// Words with one meaning per family: .and is an atomic operation, a reduction and setp's way to combine.
template <AtomicOp atomic, Reduction reduction>
void set_operation(Instruction& instruction) {
    instruction.atomic = atomic;
    instruction.reduction = reduction;
}

template <auto field, auto value>
void set(Instruction& instruction) {
    instruction.*field = value;
}

using I = Instruction;

template <Rounding rounding>
void set_integral_rounding(Instruction& instruction) {
    instruction.rounding = rounding;
    instruction.round_to_integer = true;
}

const std::map<std::string, Setter>& setters() {
    static const std::map<std::string, Setter> kSetters = {
        {".rn", set<&I::rounding, Rounding::kNearest>},
        {".rz", set<&I::rounding, Rounding::kZero>},
        {".rm", set<&I::rounding, Rounding::kDown>},
        {".rp", set<&I::rounding, Rounding::kUp>},
        {".rna", set<&I::rounding, Rounding::kNearestAway>},
        {".rni", set_integral_rounding<Rounding::kNearest>},
        {".rzi", set_integral_rounding<Rounding::kZero>},
        {".rmi", set_integral_rounding<Rounding::kDown>},
        {".rpi", set_integral_rounding<Rounding::kUp>},
        {".ftz", set<&I::flush_subnormals, true>},
        {".sat", set<&I::saturate, true>},
        {".satfinite", set<&I::saturate_finite, true>},
        {".relu", set<&I::relu, true>},
        {".approx", set<&I::approximate, true>},
        {".NaN", set<&I::nan, true>},
        {".xorsign.abs", set<&I::xorsign_abs, true>},

        {".lo", [](I& i) { i.part = MulPart::kLow, i.compare = Compare::kLo; }},
        {".hi", [](I& i) { i.part = MulPart::kHigh, i.compare = Compare::kHi; }},
        {".wide", set<&I::part, MulPart::kWide>},
        {".eq", set<&I::compare, Compare::kEq>},
        {".ne", set<&I::compare, Compare::kNe>},
        {".lt", set<&I::compare, Compare::kLt>},
        {".le", set<&I::compare, Compare::kLe>},
        {".gt", set<&I::compare, Compare::kGt>},
        {".ge", set<&I::compare, Compare::kGe>},
        {".ls", set<&I::compare, Compare::kLs>},
        {".hs", set<&I::compare, Compare::kHs>},
        {".equ", set<&I::compare, Compare::kEqu>},
        {".neu", set<&I::compare, Compare::kNeu>},
        {".ltu", set<&I::compare, Compare::kLtu>},
        {".leu", set<&I::compare, Compare::kLeu>},
        {".gtu", set<&I::compare, Compare::kGtu>},
        {".geu", set<&I::compare, Compare::kGeu>},
        {".num", set<&I::compare, Compare::kNum>},
        {".nan", set<&I::compare, Compare::kNan>},
        {".finite", set<&I::test, TestProperty::kFinite>},
        {".infinite", set<&I::test, TestProperty::kInfinite>},
        {".number", set<&I::test, TestProperty::kNumber>},
        {".notanumber", set<&I::test, TestProperty::kNotANumber>},
        {".normal", set<&I::test, TestProperty::kNormal>},
        {".subnormal", set<&I::test, TestProperty::kSubnormal>},

        {".and", [](I& i) { set_operation<AtomicOp::kAnd, Reduction::kAnd>(i), i.bool_op = BoolOp::kAnd; }},
        {".or", [](I& i) { set_operation<AtomicOp::kOr, Reduction::kOr>(i), i.bool_op = BoolOp::kOr; }},
        {".xor", [](I& i) { set_operation<AtomicOp::kXor, Reduction::kXor>(i), i.bool_op = BoolOp::kXor; }},
        {".add", set_operation<AtomicOp::kAdd, Reduction::kAdd>},
        {".min", set_operation<AtomicOp::kMin, Reduction::kMin>},
        {".max", set_operation<AtomicOp::kMax, Reduction::kMax>},
        {".popc", set<&I::reduction, Reduction::kPopc>},
        {".inc", [](I& i) { i.atomic = AtomicOp::kIncrement, i.increase = true; }},
        {".dec", set<&I::atomic, AtomicOp::kDecrement>},
        {".exch", set<&I::atomic, AtomicOp::kExchange>},
        {".cas", set<&I::atomic, AtomicOp::kCompareSwap>},

        {".r", set<&I::right, true>},
        {".wrap", set<&I::wrap, true>},
        {".shiftamt", set<&I::shift_amount, true>},
        {".f4e", set<&I::permute, PermuteMode::kForward4>},
        {".b4e", set<&I::permute, PermuteMode::kBackward4>},
        {".rc8", set<&I::permute, PermuteMode::kReplicate8>},
        {".ecl", set<&I::permute, PermuteMode::kEdgeLeft>},
        {".ecr", set<&I::permute, PermuteMode::kEdgeRight>},
        {".rc16", set<&I::permute, PermuteMode::kReplicate16>},
        {".to", set<&I::to_space, true>},

        {".relaxed", set<&I::semantics, Semantics::kRelaxed>},
        {".acquire", set<&I::semantics, Semantics::kAcquire>},
        {".release", set<&I::semantics, Semantics::kRelease>},
        {".acq_rel", set<&I::semantics, Semantics::kAcquireRelease>},
        {".sc", set<&I::semantics, Semantics::kSequential>},
        {".volatile", set<&I::semantics, Semantics::kVolatile>},
        {".mmio", set<&I::semantics, Semantics::kMmio>},
        {".cta", set<&I::scope, Scope::kCta>},
        {".cluster", set<&I::scope, Scope::kCluster>},
        {".gpu", set<&I::scope, Scope::kGpu>},
        {".gl", set<&I::scope, Scope::kGpu>},
        {".sys", set<&I::scope, Scope::kSystem>},
        {".nc", set<&I::non_coherent, true>},
        {".v2", set<&I::vector, uint8_t{2}>},
        {".v4", set<&I::vector, uint8_t{4}>},
        {".v8", set<&I::vector, uint8_t{8}>},

        {".up", set<&I::shuffle, Shuffle::kUp>},
        {".down", set<&I::shuffle, Shuffle::kDown>},
        {".bfly", set<&I::shuffle, Shuffle::kButterfly>},
        {".idx", set<&I::shuffle, Shuffle::kIndex>},
        {".all", [](I& i) { i.vote = Vote::kAll, i.match_all = true; }},
        {".any", set<&I::vote, Vote::kAny>},
        {".uni", set<&I::vote, Vote::kUniform>},
        {".ballot", set<&I::vote, Vote::kBallot>},
        {".aligned", set<&I::aligned, true>},
        {".x1", set<&I::count, uint8_t{1}>},
        {".x2", set<&I::count, uint8_t{2}>},
        {".x4", set<&I::count, uint8_t{4}>},
        {".trans", set<&I::transposed, true>},

        {".1d", set<&I::count, uint8_t{1}>},
        {".2d", set<&I::count, uint8_t{2}>},
        {".3d", set<&I::count, uint8_t{3}>},
        {".4d", set<&I::count, uint8_t{4}>},
        {".5d", set<&I::count, uint8_t{5}>},
        {".wait_all", set<&I::wait_all, true>},
        {".expect_tx", set<&I::expect_tx, true>},
        {".arrive_drop", set<&I::drop, true>},
        {".noComplete", set<&I::no_complete, true>},
        {".parity", set<&I::parity, true>},
        {".test_wait", set<&I::test_only, true>},
        {".multicast::cluster", set<&I::multicast, true>},
        {".L2::cache_hint", set<&I::cache_hint, true>},
        {".read", set<&I::read_only, true>},
    };
    return kSetters;
}

// Words that only tell one form from another, and hints without effect on results.
const std::set<std::string>& silent_words() {
    static const std::set<std::string> kWords = {
        ".cc",
        ".weak",
        ".ca",
        ".cg",
        ".cs",
        ".lu",
        ".cv",
        ".wb",
        ".wt",
        ".noftz",
        ".full",
        ".noinc",
        ".sync",
        ".red",
        ".arrive",
        ".wait",
        ".warp",
        ".init",
        ".inval",
        ".complete_tx",
        ".try_wait",
        ".async",
        ".bulk",
        ".tensor",
        ".tile",
        ".reduce",
        ".prefetch",
        ".commit_group",
        ".wait_group",
        ".mbarrier",
        ".mbarrier::complete_tx::bytes",
        ".bulk_group",
        ".fence",
        ".proxy",
        ".mbarrier_init",
        ".mma_async",
        ".match",
        ".launch_dependents",
        ".row",
        ".col",
        ".m8n8",
        ".l",
        ".clamp",
        ".fractional",
        ".tensormap",
        ".L1",
        ".L2",
        ".L1::evict_normal",
        ".L1::evict_unchanged",
        ".L1::evict_first",
        ".L1::evict_last",
        ".L1::no_allocate",
        ".L2::evict_normal",
        ".L2::evict_first",
        ".L2::evict_last",
        ".L2::evict_unchanged",
        ".L2::64B",
        ".L2::128B",
        ".L2::256B",
    };
    return kWords;
}

}  // namespace

bool apply_qualifier(const std::string& qualifier, Instruction& instruction, int& spaces, int& types) {
    if (const auto type = type_names().find(qualifier); type != type_names().end()) {
        set_type(instruction, types++, type->second);
        return true;
    }
    if (const auto space = space_names().find(qualifier); space != space_names().end()) {
        (spaces++ == 0 ? instruction.space : instruction.source_space) = space->second;
        return true;
    }
    if (const auto setter = setters().find(qualifier); setter != setters().end()) {
        setter->second(instruction);
        return true;
    }
    int m = 0, n = 0, k = 0;
    if (std::sscanf(qualifier.c_str(), ".m%dn%dk%d", &m, &n, &k) == 3) {
        instruction.shape = {static_cast<int16_t>(m), static_cast<int16_t>(n), static_cast<int16_t>(k)};
        return true;
    }
    return silent_words().count(qualifier) != 0;
}

}  // namespace ptxsim
