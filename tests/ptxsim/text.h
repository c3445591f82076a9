// printf into a string (GCC 12 has no std::format).
#pragma once
#include <string>

namespace ptxsim {

[[gnu::format(printf, 1, 2)]] std::string format(const char* pattern, ...);

}  // namespace ptxsim
