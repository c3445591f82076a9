// Kernels that each do one thing wrong: a list X(one) X(another) of faults becomes an enum, and with a macro
// of its own a kernel for each.
#pragma once

#define FAULT_NAME(name) name,
#define DEFINE_FAULTS(Enum, LIST) enum class Enum { LIST(FAULT_NAME) }
