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
//   d   register of the type's width        d+  register of at least it      dw  register of twice it
//   d32 d64 d1  register of 32, 64 bits, predicate        d_  as d64, or "_"     d32_ as d32, or "_"
//   p   predicate      p|p  two predicates (either may be "_")                d|p  d, then a predicate
//   ds  one register, or a vector of as many as .v2, .v4 say, of at least the type's width ("_" allowed)
//   dV  vector of 32-bit registers
//   a   source of the type's width        a+  of at least it        w   of twice it
//   s   source of the second type's width s+  of at least it        u   32 bits        b64  64 bits     b16
//   16 bits q   predicate, may be written !p      f   f32 as  as ds, for reading                aV  vector of
//   32-bit registers k   member mask   i  integer literal   m  address   t  tensor map and coordinates   l
//   label D A mov's destination and source, with packing and unpacking x   CTA mask, present exactly with
//   .multicast::cluster h   cache policy, present exactly with .L2::cache_hint
struct FormText {
    const char* pattern;
    const char* operands;
    Opcode opcode = Opcode::kPlain;
    Selector select = nullptr;  // for kPlain
    const char* (*check)(Instruction& instruction) =
        nullptr;  // completes the instruction; an error text or nullptr
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
