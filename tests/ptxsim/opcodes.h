// The instructions the simulator knows. A form states one shape of an instruction exactly: its qualifiers in
// order and its operands. An instruction that fits no form is an error; there is no default.
#pragma once
#include <string>
#include <vector>

#include "alu.h"
#include "program.h"

namespace ptxsim {

// A form as written in the tables.
//
// `pattern`: the opcode and its qualifiers in order. ".a|.b": one of them; "[.a|.b]": one of them or none.
// "$name" stands for a list of qualifiers (opcodes.cpp has them); ".m64nNk16" for every n that is a multiple
// of 8 up to 256.
//
// `operands`: alternatives separated by " / ", each a list of
//   d     register of the type's width          dw  of twice it            d+  of at least it
//   d32   register of 32 bits                   d_  of 64 bits, or "_"     p   predicate
//   d|p   as d, then a predicate; so d32|p, and d32_|p where the first may be "_"
//   p|p   two predicates, either of which may be "_"
//   ds    register of at least the type's width, or with .v2 and so on a vector; "_" discards
//   dV    vector of 32-bit registers
//   a     source of the type's width            w   of twice it            s   of the second type's width
//   s+    source of at least the second type's width
//   u     source of 32 bits                     b64 of 64 bits             f   f32
//   q     predicate, may be written !p
//   as    as ds, to be read                     aV  as dV, to be read
//   D     mov's destination and                 A   its source, with packing and unpacking
//   k     member mask                           i   integer literal        l   label
//   m     address                               t   tensor map and coordinates
//   x     CTA mask, present exactly with .multicast::cluster
//   h     cache policy, present exactly with .L2::cache_hint
//   ci    the carry flag as an input            co  as an output           (not written)
struct FormText {
    const char* pattern;
    const char* operands;
    Opcode opcode = Opcode::kPlain;
    Selector select = nullptr;  // for kPlain
    // Completes the instruction; the text of an error, or nullptr.
    const char* (*check)(Instruction& instruction) = nullptr;
};

struct QualifierSlot {
    std::vector<std::string> choices;  // with their dots
    bool optional = false;
};

struct Form {
    std::vector<QualifierSlot> qualifiers;
    std::vector<std::vector<std::string>> operands;  // alternatives
    const FormText* text = nullptr;
};

// All forms of an opcode ("ld"), empty if it is unknown.
const std::vector<Form>& forms_of(const std::string& opcode);

// Every form of every opcode.
std::vector<const Form*> all_forms();

// Qualifiers of a written opcode: "ld.global.v4.b32" gives {".global", ".v4", ".b32"}.
std::vector<std::string> split_qualifiers(const std::string& written);

// Finds the first form that takes exactly these qualifiers and sets the instruction's fields by them. Throws
// Fault("PARSE") naming the first qualifier that no form takes at its place.
const Form& match_form(const std::string& written, Instruction& instruction);

// The tables, by subject; opcodes_*.cpp.
std::vector<FormText> arithmetic_forms();
std::vector<FormText> conversion_forms();
std::vector<FormText> memory_forms();
std::vector<FormText> control_forms();
std::vector<FormText> async_forms();
std::vector<FormText> matrix_forms();

}  // namespace ptxsim
