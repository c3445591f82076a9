// A kernel's code as the scheduler reads it: what it needs of an instruction, side by side.
#pragma once
#include <vector>

#include "counters.h"
#include "program.h"

namespace ptxsim {

struct Prepared {
    const Instruction* instruction = nullptr;
    PlainFunction plain = nullptr;
    Slot guard = kNoSlot;
    bool guard_negated = false;
    // What an undefined input means: a mov passes it on, a selp only if it is the one selected, anything else
    // is a fault.
    enum class Undefined : uint8_t { kFault, kCopy, kSelect } undefined = Undefined::kFault;
    uint8_t inputs = 0, outputs = 0;
    Slot input[4]{}, output[4]{};
    bool divides = false;  // integer division or remainder: what division by zero gives is undefined
    bool many = false;     // more slots than fit: read the instruction's own lists
};

struct PreparedKernel {
    explicit PreparedKernel(const Kernel& kernel);
    const Kernel& kernel;
    std::vector<Prepared> code;
    bool copies = false;  // has cp.async
    bool async = false;   // has mbarriers, bulk copies, wgmma or proxy fences
};

// Applies the rule of `undefined` for the lanes of the mask: records which outputs are defined now. Returns
// the slot whose value must not be used, or kNoSlot.
Slot track_definitions(const Prepared& prepared, std::vector<uint32_t>& defined, const uint64_t* registers,
                       uint32_t mask);

// The lanes of the mask in which a division's divisor is zero; their outputs become undefined.
uint32_t zero_divisors(const Prepared& prepared, std::vector<uint32_t>& defined, const uint64_t* registers,
                       uint32_t mask);

}  // namespace ptxsim
