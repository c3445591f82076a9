// What the tests of parser and ALU call, without a machine; the C functions are in inspect.cpp.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cudart.h"

extern "C" {
// Parses a module; a JSON text that describes it, or nullptr after an error.
PTXSIM_EXPORT const char* ptxsim_inspect(const char* text);

// All forms of the opcode tables: a JSON list of [opcode, [[optional, choice, ...], ...], [operands, ...]].
PTXSIM_EXPORT const char* ptxsim_inspect_forms();

// Runs the statements of `body` (declarations and lane-wise instructions) on vectors of n values: before
// them, column i is loaded into the register names[i] for i < inputs, afterwards the others receive theirs.
// 0, or 1 after an error.
PTXSIM_EXPORT int ptxsim_inspect_alu(const char* body, const char* const* names, uint64_t* const* columns,
                                     int inputs, int count, size_t n);

// Every kind of fault: a JSON list.
PTXSIM_EXPORT const char* ptxsim_inspect_fault_kinds();

// Of the calling thread's last failure.
PTXSIM_EXPORT const char* ptxsim_inspect_error();
}
