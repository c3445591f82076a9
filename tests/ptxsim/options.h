// Options of a run. Every schedule that a seed and these values give is one that a device may choose.
#pragma once

#include <cstdint>
#include <string_view>

namespace ptxsim {

struct Options {
    int64_t seed = 1;                // of every choice the scheduler makes
    int64_t races = 1;               // 0: no happens-before checks (several times faster)
    int64_t quantum = 200;           // instructions a warp may run before another takes over
    int64_t max_resident = 64;       // blocks of one launch that are on the device at once
    int64_t max_inst = 20000000000;  // thread instructions of a run before it counts as hung
    int64_t chaos = 1;               // 0: no random stalls of warps and blocks
    int64_t spurious = 25;           // percent of mbarrier.try_wait that return false though they could wait
    int64_t delay = 30;              // steps an asynchronous copy may take at most
    int64_t wgmma_time = 2;  // wgmma reads its operands: 0 when issued, 1 when waited for, 2 either at random
    int64_t hwacc = 0;       // fraction bits a tensor core keeps when it adds; 0: exact products, FP32 sums
};

struct OptionName {
    std::string_view name;
    int64_t Options::* field;
    int64_t least, most;
};

inline constexpr OptionName kOptionNames[] = {
    {"seed", &Options::seed, 0, INT64_MAX},         {"races", &Options::races, 0, 1},
    {"quantum", &Options::quantum, 1, 1 << 20},     {"max_resident", &Options::max_resident, 1, 1 << 20},
    {"max_inst", &Options::max_inst, 1, INT64_MAX}, {"chaos", &Options::chaos, 0, 1},
    {"spurious", &Options::spurious, 0, 99},        {"delay", &Options::delay, 0, 1 << 20},
    {"wgmma_time", &Options::wgmma_time, 0, 2},     {"hwacc", &Options::hwacc, 0, 24},
};

}  // namespace ptxsim
