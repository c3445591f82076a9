// The one exception of the simulator. Its kind is a word in capitals that tests match (PARSE, DIV0, RACE);
// the machine adds kernel, CTA, warp and PTX line to the message of a fault that an instruction raised.
#pragma once
#include <array>
#include <stdexcept>
#include <string>
#include <string_view>

namespace ptxsim {

// docs/simulator.md says what each means.
// clang-format off
inline constexpr auto kFaultKinds = std::to_array<std::string_view>({
    // kernels
    "RACE", "GLOBAL_RACE", "NON_COHERENT", "PROXY", "ASYNC_RACE", "ASYNC_EXIT", "UNINIT",
    "GLOBAL_OOB", "SHARED_OOB", "LOCAL_OOB", "PARAM_OOB", "GLOBAL_RO", "GLOBAL_WO", "PARAM_RO", "MISALIGNED",
    "DIVERGED", "SYNC_MASK", "SHFL", "BARRIER", "DEADLOCK", "TIMEOUT", "NOT_UNIFORM", "TRAP", "ASSERT",
    "MBAR_MISUSE", "MBAR_EXIT", "TMA_ALIGN", "TENSOR_MAP", "MULTICAST", "BULK_EXIT",
    "WGMMA_FENCE", "WGMMA_REG", "WGMMA_GROUP", "WGMMA_DESC", "WGMMA_EXIT",
    "CLUSTER_BARRIER", "CLUSTER_EXIT", "SETMAXNREG", "CP_ASYNC", "DIV0", "BRANCH",
    // calls of the runtime
    "LAUNCH", "CAPTURE", "MEMORY", "STREAM", "DEVICE", "TIME",
    // what the simulator does not do; INTERNAL: its own error
    "IMAGE", "PARSE", "UNSUPPORTED", "INTERNAL",
});
// clang-format on

// One of kFaultKinds; a literal that is none of them does not compile.
class FaultKind {
  public:
    consteval FaultKind(const char* name) : name_(name) {
        bool known = false;
        for (const std::string_view kind : kFaultKinds) known |= kind == name_;
        if (!known) throw "no such kind in kFaultKinds";
    }
    std::string text() const { return std::string(name_); }
    bool operator==(const FaultKind&) const = default;

  private:
    std::string_view name_;
};

class Fault : public std::runtime_error {
  public:
    Fault(FaultKind fault_kind, const std::string& message)
        : std::runtime_error(fault_kind.text() + ": " + message), kind(fault_kind), detail(message) {}
    FaultKind kind;
    std::string detail;
};

}  // namespace ptxsim
