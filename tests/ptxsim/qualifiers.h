// What each qualifier means for the fields of an instruction.
#pragma once
#include <string>

#include "program.h"

namespace ptxsim {

// Sets what `qualifier` (".ftz") says; `spaces` and `types` count the state spaces and types met so far. One
// that only distinguishes forms (.sync) sets nothing. False for a qualifier that no table uses.
bool apply_qualifier(const std::string& qualifier, Instruction& instruction, int& spaces, int& types);

}  // namespace ptxsim
