// PTX text to tokens.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace ptxsim {

struct Token {
    enum class Kind : uint8_t { kWord, kNumber, kString, kPunctuation, kEnd };
    Kind kind = Kind::kEnd;
    std::string text;  // a word: identifier, register, directive or whole opcode ("ld.global.nc.v4.b32")
    int line = 0;
    size_t begin = 0, end = 0;  // position in the source
    bool is(const char* expected) const { return kind != Kind::kString && text == expected; }
};

// Comments vanish. The last token is kEnd. Throws Fault("PARSE") for a character that PTX does not know.
std::vector<Token> tokenize(const std::string& source);

}  // namespace ptxsim
