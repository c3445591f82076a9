// The one exception of the simulator. `kind` is a short fixed word in capitals that tests match (PARSE, DIV0,
// RACE); the machine adds kernel, CTA, warp and PTX line to the message of a fault that an instruction
// raised.
#pragma once
#include <stdexcept>
#include <string>

namespace ptxsim {

class Fault : public std::runtime_error {
  public:
    Fault(std::string fault_kind, const std::string& message)
        : std::runtime_error(fault_kind + ": " + message), kind(std::move(fault_kind)), detail(message) {}
    std::string kind, detail;
};

}  // namespace ptxsim
