// Errors a caller can cause: one exception type (ValueError in Python), one sentence that names the
// operator, the argument, what was wanted and what was given.
#pragma once
#include <sstream>
#include <stdexcept>

namespace dse {

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    throw std::invalid_argument(text.str());
}

}  // namespace dse

// Evaluates the message only when the condition does not hold. torch's own check macros raise
// RuntimeError and put the build machine's file names into the text.
#define DSE_REQUIRE(condition, ...) \
    if (condition) [[likely]] {     \
    } else                          \
        ::dse::fail(__VA_ARGS__)
