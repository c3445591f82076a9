// The module _native: facts about the build and the host that need no torch.
#include <pybind11/pybind11.h>

#include <string>

#include "cpu/isa.h"

namespace py = pybind11;

PYBIND11_MODULE(_native, m) {
    m.doc() = "Build facts and host queries of deepseek-ext.";
    m.def(
        "build_info",
        [] {
            py::dict info;
            info["version"] = DSE_VERSION;
            info["compiler"] = "g++ " __VERSION__;
            info["standard"] = static_cast<long>(__cplusplus);
            return info;
        },
        "Version, compiler and C++ standard this library was built with.");
    m.def(
        "host_capability", [] { return dse::cpu::capability_name(dse::cpu::host_isa()); },
        "The highest CPU tier of this host: generic, avx2, avx512 or avx512_bf16.");
    m.def(
        "check_capability", [](const std::string& name) { dse::cpu::parse_capability(name); },
        "Raises ValueError if a tier is unknown or above the host's.");
}
