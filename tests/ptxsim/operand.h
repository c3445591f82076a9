// The operands of an instruction as written, before names are looked up.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "lexer.h"

namespace ptxsim {

struct Operand {
    enum class Kind : uint8_t {
        kName,     // register, variable, label or "_"; variables with an offset: name+4
        kInteger,  // value
        kFloat,   // 0f3f800000: value holds the bits, bytes is 4; 0d...: bytes is 8; 1.5: bytes is 0, decimal
        kVector,  // {a, b}
        kMemory,  // [base+offset] with parts[0] the base and what follows a comma inside the brackets after
                  // it
        kPair,    // a|b
        kList,    // (a, b) of a call
    };
    Kind kind = Kind::kName;
    std::string name;
    uint64_t value = 0;
    double decimal = 0;
    int bytes = 0;
    int64_t offset = 0;
    bool negated = false;  // !p
    std::vector<Operand> parts;
};

// Reads one operand at tokens[position] and moves on behind it. Throws Fault("PARSE").
Operand read_operand(const std::vector<Token>& tokens, size_t& position);

// An integer literal: 12, 12U, 0x1f, 017, 0b101.
uint64_t integer_literal(const Token& token);

}  // namespace ptxsim
