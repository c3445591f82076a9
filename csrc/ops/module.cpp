// The module _C: opens the operator library, to which each family adds its schemas and kernels, and holds
// the one operator that belongs to no family.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include <string>

#include "cpu/isa.h"

namespace {

std::string cpu_capability() { return dse::cpu::capability_name(dse::cpu::current_isa()); }

std::string set_cpu_capability(std::string name) {
    const std::string before = cpu_capability();
    dse::cpu::set_current_isa(dse::cpu::parse_capability(name));
    return before;
}

}  // namespace

STABLE_TORCH_LIBRARY(deepseek_ext, m) {
    m.def("cpu_capability() -> str");
    m.def("set_cpu_capability(str name) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(deepseek_ext, CompositeExplicitAutograd, m) {
    m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
    m.impl("set_cpu_capability", TORCH_BOX(&set_cpu_capability));
}

// An empty module of the limited API: importing it runs the static registrations.
extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C(void) {
    static PyModuleDef definition = {
        PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
    return PyModule_Create(&definition);
}
