// printf into a string (GCC 12 has no std::format).
#pragma once

#include <cstdarg>
#include <cstdio>
#include <string>

namespace ptxsim {

__attribute__((format(printf, 1, 2))) inline std::string text(const char* format, ...) {
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    std::string result(static_cast<size_t>(std::vsnprintf(nullptr, 0, format, again)), '\0');
    va_end(again);
    std::vsnprintf(result.data(), result.size() + 1, format, arguments);
    va_end(arguments);
    return result;
}

}  // namespace ptxsim
