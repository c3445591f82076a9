// One kernel launch as the machine takes it: checked by the runtime, parameters copied.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "program.h"

namespace ptxsim {

struct Launch {
    Module* module = nullptr;
    const Kernel* kernel = nullptr;
    std::array<uint32_t, 3> grid{1, 1, 1}, block{1, 1, 1}, cluster{1, 1, 1};  // cluster divides grid
    uint32_t dynamic_shared = 0;
    std::vector<uint8_t> parameters;
    int device = 0;          // rank: scopes narrower than .sys do not reach from one device to another
    std::vector<int> after;  // earlier launches of the same run whose end this one's start waits for
};

}  // namespace ptxsim
