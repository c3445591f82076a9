// The options of a run, set by name; an unknown name or a value out of range is refused.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace ptxsim {

struct Options {
    int64_t seed = 1;       // of every choice the scheduler makes
    int64_t races = 1;      // 0: no race detection (about three times faster)
    int64_t registers = 1;  // 0: registers start as zero, and reading one before writing it is no fault
    int64_t quantum = 200;  // instructions a warp runs in one turn, at most twice this
    int64_t chaos = 1;      // 0: no warp or CTA is held back at random
    int64_t max_inst = 20'000'000'000;  // thread instructions of one run; more is reported as a livelock
    int64_t max_resident = 32;          // CTAs of one launch that run at the same time
    int64_t hwacc = 0;                  // fraction bits a tensor core keeps while it adds; 0: exact sums
    int64_t async_delay = 30;           // rounds an asynchronous operation may take (0: done when issued)
    int64_t wgmma_mode = 2;             // wgmma done when issued (0), when waited for (1), at random (2)
    int64_t spurious = 25;  // percent of failing mbarrier.try_wait that return instead of blocking

    // False if no option has this name or the value is out of its range; nothing is changed then.
    bool set(const std::string& name, int64_t value);
    static std::vector<std::string> names();
};

}  // namespace ptxsim
