// What a person reads when a run fails.
#pragma once
#include <string>

#include "async.h"
#include "fault.h"
#include "shadow.h"
#include "text.h"

namespace ptxsim {

// "[kernel k cta (0,0,0) warp 1 lanes 0000ffff] at PTX line 12: st.global..."
std::string where(const Machine& machine);
// The sentence for an access that races: what, where, with whom, and what is missing.
std::string describe_conflict(const Machine& machine, const std::string& what, bool is_write,
                              const Access& access, const Conflict& conflict);
// Each warp that cannot go on, and what it waits for.
std::string describe_waiting(const Machine& machine);

}  // namespace ptxsim
