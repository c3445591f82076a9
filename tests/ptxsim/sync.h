// Order made through memory: what a release stored at an address, for whoever acquires it.
#pragma once
#include "clock.h"
#include "program.h"

namespace ptxsim {

struct SyncVariable {
    Clock clock;
    Scope scope = Scope::kNone;  // the narrowest of those who contributed
    Actor first = 0, last = 0;   // who contributed
};

}  // namespace ptxsim
