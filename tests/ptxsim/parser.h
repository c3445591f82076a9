// PTX text to Module.
#pragma once
#include <memory>
#include <string>

#include "program.h"

namespace ptxsim {

// Throws Fault("PARSE", "line N: ...") naming the line and the instruction for anything it does not know
// exactly: an opcode, a qualifier, a type the opcode does not take, a wrong number or width of operands.
// Functions are expanded where they are called (no recursion, no calls through pointers); .param variables of
// a call live in local memory.
std::unique_ptr<Module> parse_module(const std::string& text);

}  // namespace ptxsim
