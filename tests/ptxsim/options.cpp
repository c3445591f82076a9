#include "options.h"

namespace ptxsim {
namespace {

struct Entry {
    const char* name;
    int64_t Options::* field;
    int64_t low, high;
};

constexpr int64_t kAny = INT64_MAX;
constexpr Entry kEntries[] = {
    {"seed", &Options::seed, INT64_MIN, kAny},
    {"races", &Options::races, 0, 1},
    {"registers", &Options::registers, 0, 1},
    {"quantum", &Options::quantum, 1, kAny},
    {"chaos", &Options::chaos, 0, 1},
    {"max_inst", &Options::max_inst, 1, kAny},
    {"max_resident", &Options::max_resident, 1, 4096},
    {"hwacc", &Options::hwacc, 0, 24},
    {"async_delay", &Options::async_delay, 0, 1'000'000},
    {"wgmma_mode", &Options::wgmma_mode, 0, 2},
    {"spurious", &Options::spurious, 0, 100},
};

}  // namespace

bool Options::set(const std::string& name, int64_t value) {
    for (const Entry& entry : kEntries) {
        if (name != entry.name) continue;
        if (value < entry.low || value > entry.high) return false;
        this->*entry.field = value;
        return true;
    }
    return false;
}

std::vector<std::string> Options::names() {
    std::vector<std::string> names;
    for (const Entry& entry : kEntries) names.push_back(entry.name);
    return names;
}

}  // namespace ptxsim
