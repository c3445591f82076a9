#include "kernel_builder.h"

#include <algorithm>

#include "fault.h"

namespace ptxsim {
namespace {

uint64_t align_up(uint64_t value, uint64_t alignment) {
    return (value + alignment - 1) / alignment * alignment;
}

}  // namespace

KernelBuilder::KernelBuilder(Kernel& kernel, const Module& module, const SharedDeclarations& shared)
    : kernel_(kernel), module_(module), module_shared_(shared) {
    enter_scope();
}

void KernelBuilder::enter_scope(bool isolated) {
    Scope scope;
    scope.enclosing = isolated ? 0 : current_;
    scope.parent_when_left = current_;
    scopes_.push_back(std::move(scope));
    current_ = static_cast<int>(scopes_.size()) - 1;
}

Slot KernelBuilder::new_slot(int bits, const std::string& name) {
    kernel_.slot_bits.push_back(static_cast<uint8_t>(bits));
    kernel_.slot_names.push_back(name);
    return kernel_.slots++;
}

void KernelBuilder::declare(const std::string& name, Symbol symbol) {
    if (!scopes_[current_].symbols.emplace(name, symbol).second)
        throw Fault("PARSE", name + " is declared twice");
}

void KernelBuilder::declare_register(const std::string& name, int bits) {
    declare(name, {Symbol::Kind::kRegister, static_cast<uint64_t>(new_slot(bits, name))});
}

void KernelBuilder::declare_shared(const std::string& name, const SharedDeclaration& declaration) {
    if (declaration.is_extern) {
        dynamic_alignment_ = std::max(dynamic_alignment_, declaration.alignment);
        declare(name, {Symbol::Kind::kDynamicShared, 0});
        return;
    }
    const uint64_t offset = align_up(kernel_.static_shared_bytes, declaration.alignment);
    kernel_.static_shared_bytes = static_cast<uint32_t>(offset + declaration.bytes);
    declare(name, {Symbol::Kind::kShared, kSharedReserved + offset});
}

uint64_t KernelBuilder::reserve_local(uint64_t bytes, uint64_t alignment) {
    const uint64_t offset = align_up(kernel_.local_bytes, alignment);
    kernel_.local_bytes = static_cast<uint32_t>(offset + bytes);
    return offset;
}

void KernelBuilder::declare_local(const std::string& name, uint64_t bytes, uint64_t alignment) {
    declare(name, {Symbol::Kind::kLocal, reserve_local(bytes, alignment)});
}

void KernelBuilder::declare_call_parameter(const std::string& name, uint64_t bytes, uint64_t alignment) {
    const uint64_t offset = reserve_local(bytes, alignment);
    declare(name, {Symbol::Kind::kCallParameter, offset});
    if (bytes > 8) clear_local(offset, bytes, std::min<uint64_t>(alignment, 8));
}

// A structure passed by value is copied with its padding, which nobody writes: that is no use of
// uninitialised memory.
void KernelBuilder::clear_local(uint64_t offset, uint64_t bytes, uint64_t unit) {
    static constexpr Type kUnits[] = {Type::kNone, Type::kB8,   Type::kB16,  Type::kNone, Type::kB32,
                                      Type::kNone, Type::kNone, Type::kNone, Type::kB64};
    const auto store = [&](uint64_t at, uint64_t width) {
        Instruction clear;
        clear.opcode = Opcode::kStore;
        clear.space = Space::kLocal;
        clear.type = kUnits[width];
        clear.element_bytes = static_cast<uint8_t>(width);
        clear.addresses.push_back({constant(at), 0});
        clear.inputs.push_back(constant(0));
        clear.text = "(padding of a call parameter)";
        kernel_.code.push_back(std::move(clear));
    };
    uint64_t done = 0;
    for (; done + unit <= bytes; done += unit) store(offset + done, unit);
    for (; done < bytes; ++done) store(offset + done, 1);
}

void KernelBuilder::declare_parameter(const std::string& name, uint64_t bytes, uint64_t alignment) {
    const uint64_t offset = align_up(kernel_.parameter_bytes, alignment);
    kernel_.parameter_bytes = static_cast<uint32_t>(offset + bytes);
    kernel_.parameters.push_back({name, static_cast<uint32_t>(offset), static_cast<uint32_t>(bytes)});
    declare(name, {Symbol::Kind::kParameter, offset});
}

void KernelBuilder::bind(const std::string& name, const Symbol& symbol) { declare(name, symbol); }

const Symbol* KernelBuilder::find(const std::string& name) {
    for (int scope = current_; scope >= 0; scope = scopes_[scope].enclosing) {
        const auto found = scopes_[scope].symbols.find(name);
        if (found != scopes_[scope].symbols.end()) return &found->second;
    }
    Symbol symbol;
    if (const auto variable = module_.variables.find(name); variable != module_.variables.end()) {
        symbol = {Symbol::Kind::kVariable, reinterpret_cast<uint64_t>(variable->second->data)};
    } else if (const auto shared = module_shared_.find(name); shared != module_shared_.end()) {
        const int scope = std::exchange(current_, 0);
        declare_shared(name, shared->second);
        current_ = scope;
        return &scopes_[0].symbols.at(name);
    } else {
        return nullptr;
    }
    return &scopes_[0].symbols.emplace(name, symbol).first->second;
}

Slot KernelBuilder::constant(uint64_t value) {
    const auto found = constants_.find(value);
    if (found != constants_.end()) return found->second;
    const Slot slot = new_slot(0, "");
    kernel_.constants.emplace_back(slot, value);
    return constants_[value] = slot;
}

Slot KernelBuilder::dynamic_shared(int64_t offset) {
    const auto found = dynamic_shared_.find(offset);
    if (found != dynamic_shared_.end()) return found->second;
    return dynamic_shared_[offset] = new_slot(0, "");
}

Slot KernelBuilder::special(SpecialRegister which) {
    const auto found = specials_.find(which);
    if (found != specials_.end()) return found->second;
    const Slot slot = new_slot(0, "");
    kernel_.special_registers.emplace_back(slot, which);
    return specials_[which] = slot;
}

Slot KernelBuilder::carry() {
    if (carry_ == kNoSlot) carry_ = new_slot(1, "CC.CF");
    return carry_;
}

void KernelBuilder::define_label(const std::string& name) {
    if (!scopes_[current_].labels.emplace(name, next_instruction()).second)
        throw Fault("PARSE", "label " + name + " is defined twice");
}

void KernelBuilder::define_targets(const std::string& name, std::vector<std::string> labels) {
    if (!scopes_[current_].targets.emplace(name, std::move(labels)).second)
        throw Fault("PARSE", "branch targets " + name + " are defined twice");
}

void KernelBuilder::refer(size_t instruction, const std::string& label) {
    references_.push_back({instruction, label, current_});
}

int32_t KernelBuilder::find_label(const std::string& label, int scope, int line) const {
    for (; scope >= 0; scope = scopes_[scope].enclosing) {
        const auto found = scopes_[scope].labels.find(label);
        if (found != scopes_[scope].labels.end()) return found->second;
    }
    throw Fault("PARSE", "line " + std::to_string(line) + ": no label " + label);
}

void KernelBuilder::finish() {
    Instruction last;
    last.opcode = Opcode::kReturn;
    last.text = "(end of " + kernel_.name + ")";
    kernel_.code.push_back(std::move(last));
    for (const Reference& reference : references_) {
        Instruction& instruction = kernel_.code[reference.instruction];
        if (instruction.opcode != Opcode::kBranchIndexed) {
            instruction.target = find_label(reference.label, reference.scope, instruction.line);
            continue;
        }
        int scope = reference.scope;
        while (scope >= 0 && !scopes_[scope].targets.count(reference.label)) scope = scopes_[scope].enclosing;
        if (scope < 0)
            throw Fault("PARSE", "line " + std::to_string(instruction.line) + ": no branch targets " +
                                     reference.label);
        for (const std::string& label : scopes_[scope].targets.at(reference.label))
            instruction.targets.push_back(find_label(label, scope, instruction.line));
    }
    kernel_.dynamic_shared_address =
        static_cast<uint32_t>(align_up(kSharedReserved + kernel_.static_shared_bytes, dynamic_alignment_));
    for (const auto& [offset, slot] : dynamic_shared_)
        kernel_.constants.emplace_back(slot, static_cast<uint32_t>(kernel_.dynamic_shared_address + offset));
}

bool special_register(const std::string& name, SpecialRegister& which) {
    using R = SpecialRegister;
    static const std::map<std::string, SpecialRegister> kNames = {
        {"%tid.x", R::kTidX},
        {"%tid.y", R::kTidY},
        {"%tid.z", R::kTidZ},
        {"%ntid.x", R::kNtidX},
        {"%ntid.y", R::kNtidY},
        {"%ntid.z", R::kNtidZ},
        {"%ctaid.x", R::kCtaidX},
        {"%ctaid.y", R::kCtaidY},
        {"%ctaid.z", R::kCtaidZ},
        {"%nctaid.x", R::kNctaidX},
        {"%nctaid.y", R::kNctaidY},
        {"%nctaid.z", R::kNctaidZ},
        {"%clusterid.x", R::kClusteridX},
        {"%clusterid.y", R::kClusteridY},
        {"%clusterid.z", R::kClusteridZ},
        {"%nclusterid.x", R::kNclusteridX},
        {"%nclusterid.y", R::kNclusteridY},
        {"%nclusterid.z", R::kNclusteridZ},
        {"%cluster_ctaid.x", R::kClusterCtaidX},
        {"%cluster_ctaid.y", R::kClusterCtaidY},
        {"%cluster_ctaid.z", R::kClusterCtaidZ},
        {"%cluster_nctaid.x", R::kClusterNctaidX},
        {"%cluster_nctaid.y", R::kClusterNctaidY},
        {"%cluster_nctaid.z", R::kClusterNctaidZ},
        {"%cluster_ctarank", R::kClusterCtarank},
        {"%cluster_nctarank", R::kClusterNctarank},
        {"%is_explicit_cluster", R::kIsExplicitCluster},
        {"%laneid", R::kLaneid},
        {"%warpid", R::kWarpid},
        {"%nwarpid", R::kNwarpid},
        {"%smid", R::kSmid},
        {"%nsmid", R::kNsmid},
        {"%gridid", R::kGridid},
        {"%lanemask_eq", R::kLanemaskEq},
        {"%lanemask_le", R::kLanemaskLe},
        {"%lanemask_lt", R::kLanemaskLt},
        {"%lanemask_ge", R::kLanemaskGe},
        {"%lanemask_gt", R::kLanemaskGt},
        {"%dynamic_smem_size", R::kDynamicSmemSize},
        {"%total_smem_size", R::kTotalSmemSize},
        {"%clock", R::kClock},
        {"%clock64", R::kClock64},
        {"%globaltimer", R::kGlobalTimer},
    };
    const auto found = kNames.find(name);
    if (found == kNames.end()) return false;
    which = found->second;
    return true;
}

int special_register_bits(SpecialRegister which) {
    switch (which) {
        case SpecialRegister::kIsExplicitCluster:
            return 1;
        case SpecialRegister::kGridid:
        case SpecialRegister::kClock64:
        case SpecialRegister::kGlobalTimer:
            return 64;
        default:
            return 32;
    }
}

}  // namespace ptxsim
