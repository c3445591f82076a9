#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace dse::cpu {
namespace {

Isa detect() {
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
    if (!avx2) return Isa::kGeneric;
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (!avx512) return Isa::kAvx2;
    const bool vbmi = __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2");
    if (__builtin_cpu_supports("avx512bf16")) return vbmi ? Isa::kAvx512Bf16Vbmi : Isa::kAvx512Bf16;
    return vbmi ? Isa::kAvx512Vbmi : Isa::kAvx512;
#else
    return Isa::kGeneric;
#endif
}

int tier(Isa isa) {
    switch (isa) {
        case Isa::kGeneric:
            return 0;
        case Isa::kAvx2:
            return 1;
        case Isa::kAvx512:
        case Isa::kAvx512Vbmi:
            return 2;
        case Isa::kAvx512Bf16:
        case Isa::kAvx512Bf16Vbmi:
            return 3;
    }
    return 0;
}

bool has_vbmi(Isa isa) { return isa == Isa::kAvx512Vbmi || isa == Isa::kAvx512Bf16Vbmi; }

constexpr const char* kTierNames[] = {"generic", "avx2", "avx512", "avx512_bf16"};

Isa from_environment() {
    const char* forced = std::getenv("DSE_CPU_CAPABILITY");
    return forced && *forced ? parse_capability(forced) : host_isa();
}

std::atomic<int>& current() {
    static std::atomic<int> value{static_cast<int>(from_environment())};
    return value;
}

}  // namespace

Isa host_isa() {
    static const Isa isa = detect();
    return isa;
}

Isa parse_capability(const std::string& name) {
    const std::string suffix = "-novbmi";
    const bool no_vbmi = name.size() > suffix.size() && name.ends_with(suffix);
    const std::string base = no_vbmi ? name.substr(0, name.size() - suffix.size()) : name;
    int wanted = -1;
    for (int i = 0; i < 4; ++i)
        if (base == kTierNames[i]) wanted = i;
    if (wanted < 0 || (no_vbmi && wanted < 2)) {
        throw std::invalid_argument("'" + name +
                                    "' is not a tier; write generic, avx2, avx512 or avx512_bf16 (the last "
                                    "two optionally with -novbmi)");
    }
    if (wanted > tier(host_isa())) {
        std::string choices = kTierNames[0];
        for (int i = 1; i <= tier(host_isa()); ++i) choices += std::string(", ") + kTierNames[i];
        throw std::invalid_argument("'" + name + "' is above what this CPU has ('" +
                                    kTierNames[tier(host_isa())] + "'); choose one of: " + choices);
    }
    const bool vbmi = has_vbmi(host_isa()) && !no_vbmi;
    if (wanted == 3) return vbmi ? Isa::kAvx512Bf16Vbmi : Isa::kAvx512Bf16;
    if (wanted == 2) return vbmi ? Isa::kAvx512Vbmi : Isa::kAvx512;
    return wanted == 1 ? Isa::kAvx2 : Isa::kGeneric;
}

std::string capability_name(Isa isa) {
    const bool without = tier(isa) >= 2 && has_vbmi(host_isa()) && !has_vbmi(isa);
    return std::string(kTierNames[tier(isa)]) + (without ? "-novbmi" : "");
}

Isa current_isa() { return static_cast<Isa>(current().load(std::memory_order_relaxed)); }

void set_current_isa(Isa isa) { current().store(static_cast<int>(isa), std::memory_order_relaxed); }

}  // namespace dse::cpu
