// Variable declarations: .global .align 4 .b8 name[16] = {...};  .reg .b32 %r<5>;  .param .u64 .ptr .align 8
// p
#pragma once
#include <map>
#include <string>
#include <vector>

#include "lexer.h"
#include "program.h"

namespace ptxsim {

struct Declaration {
    std::string space;  // ".reg", ".global", ".const", ".shared", ".local", ".param"
    bool is_extern = false;
    Type type = Type::kNone;
    uint64_t alignment = 1;
    struct Name {
        std::string name;
        uint64_t count = 1;       // array elements; of %r<5>: registers
        bool is_range = false;    // %r<5>
        bool is_unsized = false;  // name[]
        size_t initialiser = 0;   // token behind '=', 0 if there is none
    };
    std::vector<Name> names;
    uint64_t bytes(const Name& name) const { return name.count * static_cast<uint64_t>(type_bytes(type)); }
};

// Reads from the space's directive (or what precedes it: .visible, .extern, .weak) to the token behind the
// last name, initialisers skipped. Throws Fault("PARSE") for a directive it does not know.
Declaration read_declaration(const std::vector<Token>& tokens, size_t& position);

// Makes the variable and fills it. Initialisers may name variables declared before: name, name+4,
// generic(name).
std::unique_ptr<Variable> make_variable(const Declaration& declaration, const Declaration::Name& name,
                                        const std::vector<Token>& tokens, const Module& module);

}  // namespace ptxsim
