// The names and slots of a kernel while it is being read.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "program.h"

namespace ptxsim {

// What a name in a PTX body stands for.
struct Symbol {
    enum class Kind : uint8_t {
        kRegister,       // value: slot
        kShared,         // value: address
        kDynamicShared,  // extern .shared
        kLocal,          // value: offset in the lane's frame
        kParameter,      // of the kernel; value: offset
        kCallParameter,  // .param variable of a call, in the lane's frame; value: offset
        kVariable,       // global or constant memory; value: host address
    };
    Kind kind = Kind::kRegister;
    uint64_t value = 0;
};

// .shared at module level: laid out anew in every kernel that uses it.
struct SharedDeclaration {
    uint64_t bytes = 0, alignment = 1;
    bool is_extern = false;
};

using SharedDeclarations = std::map<std::string, SharedDeclaration>;

class KernelBuilder {
  public:
    KernelBuilder(Kernel& kernel, const Module& module, const SharedDeclarations& shared);

    Kernel& kernel() { return kernel_; }

    // Scopes follow the braces. A function expanded in place starts a scope without enclosing one.
    void enter_scope(bool isolated = false);
    void leave_scope() { current_ = scopes_[current_].parent_when_left; }

    void declare_register(const std::string& name, int bits);
    void declare_shared(const std::string& name, const SharedDeclaration& declaration);
    void declare_local(const std::string& name, uint64_t bytes, uint64_t alignment);
    void declare_parameter(const std::string& name, uint64_t bytes, uint64_t alignment);
    void declare_call_parameter(const std::string& name, uint64_t bytes, uint64_t alignment);
    void bind(const std::string& name, const Symbol& symbol);  // a function's formal parameter

    // Looks outwards from the current scope; nullptr if there is no such name.
    const Symbol* find(const std::string& name);

    Slot constant(uint64_t value);
    Slot dynamic_shared(
        int64_t offset);  // the address of extern shared memory, known when the kernel is complete
    Slot special(SpecialRegister which);
    Slot carry();  // the flag of .cc, addc, subc, madc
    int slot_bits(Slot slot) const { return kernel_.slot_bits[static_cast<size_t>(slot)]; }

    // Labels. References may come first; finish() resolves them.
    void define_label(const std::string& name);
    void define_targets(const std::string& name, std::vector<std::string> labels);
    void refer(size_t instruction, const std::string& label);  // kBranch and kBranchIndexed
    int32_t next_instruction() const { return static_cast<int32_t>(kernel_.code.size()); }

    // Appends the final return, resolves labels and dynamic shared addresses.
    void finish();

  private:
    struct Scope {
        int enclosing = -1;         // where names continue to be looked for
        int parent_when_left = -1;  // current scope after the closing brace
        std::map<std::string, Symbol> symbols;
        std::map<std::string, int32_t> labels;
        std::map<std::string, std::vector<std::string>> targets;
    };
    struct Reference {
        size_t instruction;
        std::string label;
        int scope;
    };

    Slot new_slot(int bits, const std::string& name);
    int32_t find_label(const std::string& label, int scope, int line) const;
    uint64_t reserve_local(uint64_t bytes, uint64_t alignment);
    void clear_local(uint64_t offset, uint64_t bytes, uint64_t unit);
    void declare(const std::string& name, Symbol symbol);

    Kernel& kernel_;
    const Module& module_;
    const SharedDeclarations& module_shared_;
    std::vector<Scope> scopes_;  // kept after they are left: references are resolved at the end
    int current_ = -1;
    std::map<uint64_t, Slot> constants_;
    std::map<SpecialRegister, Slot> specials_;
    std::map<int64_t, Slot> dynamic_shared_;
    std::vector<Reference> references_;
    Slot carry_ = kNoSlot;
    uint64_t dynamic_alignment_ = 16;  // at least; more if the extern declaration asks
};

// "%tid.x" to its register; false if the name is none. Timers are included.
bool special_register(const std::string& name, SpecialRegister& which);
int special_register_bits(SpecialRegister which);

}  // namespace ptxsim
