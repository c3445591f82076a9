#include "operand.h"

#include <cstdlib>

#include "fault.h"

namespace ptxsim {
namespace {

[[noreturn]] void fail(const Token& token, const std::string& message) {
    throw Fault("PARSE", "line " + std::to_string(token.line) + ": " + message);
}

bool has_prefix(const std::string& text, char letter) {
    return text.size() > 2 && text[0] == '0' && std::tolower(text[1]) == letter;
}

uint64_t hexadecimal(const Token& token, size_t digits) {
    const std::string body = token.text.substr(2);
    char* end = nullptr;
    const uint64_t value = std::strtoull(body.c_str(), &end, 16);
    if (body.size() != digits || *end != '\0') fail(token, "malformed number " + token.text);
    return value;
}

Operand number(const Token& token) {
    Operand operand;
    if (has_prefix(token.text, 'f') || has_prefix(token.text, 'd')) {
        operand.kind = Operand::Kind::kFloat;
        operand.bytes = has_prefix(token.text, 'f') ? 4 : 8;
        operand.value = hexadecimal(token, static_cast<size_t>(2 * operand.bytes));
    } else if (token.text.find_first_of(".eE") != std::string::npos && !has_prefix(token.text, 'x')) {
        operand.kind = Operand::Kind::kFloat;
        char* end = nullptr;
        operand.decimal = std::strtod(token.text.c_str(), &end);
        if (*end != '\0') fail(token, "malformed number " + token.text);
    } else {
        operand.kind = Operand::Kind::kInteger;
        operand.value = integer_literal(token);
    }
    return operand;
}

Operand negative(Operand operand) {
    if (operand.kind == Operand::Kind::kInteger)
        operand.value = 0 - operand.value;
    else if (operand.bytes == 0)
        operand.decimal = -operand.decimal;
    else
        operand.value ^= 1ull << (8 * operand.bytes - 1);
    return operand;
}

// "+4", "-4" or, as nvcc writes, "+-4"; 0 if nothing follows.
int64_t read_offset(const std::vector<Token>& tokens, size_t& position) {
    if (!tokens[position].is("+") && !tokens[position].is("-")) return 0;
    bool minus = false;
    while (tokens[position].is("+") || tokens[position].is("-")) {
        if (tokens[position].is("-")) minus = !minus;
        ++position;
    }
    const Token& token = tokens[position];
    if (token.kind != Token::Kind::kNumber)
        fail(token, "expected a number as offset, not '" + token.text + "'");
    ++position;
    const auto value = static_cast<int64_t>(integer_literal(token));
    return minus ? -value : value;
}

std::vector<Operand> read_list(const std::vector<Token>& tokens, size_t& position, const char* closing) {
    std::vector<Operand> list;
    ++position;  // the opening bracket
    if (tokens[position].is(closing)) {
        ++position;
        return list;
    }
    while (true) {
        list.push_back(read_operand(tokens, position));
        const Token& token = tokens[position];
        ++position;
        if (token.is(closing)) return list;
        if (!token.is(","))
            fail(token, std::string("expected ',' or '") + closing + "', not '" + token.text + "'");
    }
}

Operand read_simple(const std::vector<Token>& tokens, size_t& position) {
    const Token& token = tokens[position];
    Operand operand;
    if (token.is("{") || token.is("[") || token.is("(")) {
        operand.kind = token.is("{")   ? Operand::Kind::kVector
                       : token.is("[") ? Operand::Kind::kMemory
                                       : Operand::Kind::kList;
        operand.parts = read_list(tokens, position, token.is("{") ? "}" : token.is("[") ? "]" : ")");
        if (operand.kind == Operand::Kind::kMemory && operand.parts.empty())
            fail(token, "an address is empty");
        return operand;
    }
    if (token.is("!")) {
        ++position;
        operand = read_simple(tokens, position);
        operand.negated = true;
        return operand;
    }
    if (token.is("-")) {
        ++position;
        if (tokens[position].kind != Token::Kind::kNumber) fail(token, "expected a number after '-'");
        return negative(number(tokens[position++]));
    }
    ++position;
    if (token.kind == Token::Kind::kNumber) return number(token);
    if (token.kind != Token::Kind::kWord) fail(token, "expected an operand, not '" + token.text + "'");
    operand.name = token.text;
    operand.offset = read_offset(tokens, position);
    return operand;
}

}  // namespace

uint64_t integer_literal(const Token& token) {
    std::string text = token.text;
    if (!text.empty() && text.back() == 'U') text.pop_back();
    const bool binary = has_prefix(text, 'b');
    char* end = nullptr;
    const uint64_t value = std::strtoull(text.c_str() + (binary ? 2 : 0), &end, binary ? 2 : 0);
    if (*end != '\0' || token.kind != Token::Kind::kNumber) fail(token, "malformed integer " + token.text);
    return value;
}

Operand read_operand(const std::vector<Token>& tokens, size_t& position) {
    Operand first = read_simple(tokens, position);
    if (!tokens[position].is("|")) return first;
    ++position;
    Operand pair;
    pair.kind = Operand::Kind::kPair;
    pair.parts.push_back(std::move(first));
    pair.parts.push_back(read_simple(tokens, position));
    return pair;
}

}  // namespace ptxsim
