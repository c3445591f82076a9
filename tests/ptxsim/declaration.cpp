#include "declaration.h"

#include <cstring>

#include "fault.h"
#include "operand.h"

namespace ptxsim {
namespace {

[[noreturn]] void fail(const Token& token, const std::string& message) {
    throw Fault("PARSE", "line " + std::to_string(token.line) + ": " + message);
}

bool is_space(const std::string& word) {
    return word == ".reg" || word == ".global" || word == ".const" || word == ".shared" || word == ".local" ||
           word == ".param";
}

bool type_of(const std::string& word, Type& type) {
    for (int i = static_cast<int>(Type::kB8); i <= static_cast<int>(Type::kPred); ++i) {
        if (word != std::string(".") + type_name(static_cast<Type>(i))) continue;
        type = static_cast<Type>(i);
        return true;
    }
    return false;
}

// Directives before the names. .ptr and the space behind it describe what a parameter points to.
void read_directives(Declaration& declaration, const std::vector<Token>& tokens, size_t& position) {
    bool of_pointee = false;
    while (tokens[position].kind == Token::Kind::kWord && tokens[position].text[0] == '.') {
        const Token& token = tokens[position++];
        if (token.is(".align")) {
            const uint64_t alignment = integer_literal(tokens[position++]);
            if (alignment == 0 || (alignment & (alignment - 1)))
                fail(token, "an alignment is no power of two");
            if (!of_pointee) declaration.alignment = alignment;
        } else if (token.is(".extern")) {
            declaration.is_extern = true;
        } else if (token.is(".ptr")) {
            of_pointee = true;
        } else if (is_space(token.text)) {
            if (!of_pointee) declaration.space = token.text;
        } else if (token.is(".visible") || token.is(".weak") || token.is(".common")) {
            continue;  // linkage between modules, of which there is one
        } else if (!type_of(token.text, declaration.type)) {
            fail(token, "unknown directive " + token.text + " in a declaration");
        }
    }
    if (declaration.space.empty()) fail(tokens[position], "a declaration without a state space");
    if (declaration.type == Type::kNone) fail(tokens[position], "a declaration without a type");
    const auto natural = static_cast<uint64_t>(type_bytes(declaration.type));
    declaration.alignment = std::max(declaration.alignment, natural);
}

void skip_initialiser(const std::vector<Token>& tokens, size_t& position) {
    int depth = 0;
    while (tokens[position].kind != Token::Kind::kEnd) {
        const Token& token = tokens[position];
        if (token.is("{") || token.is("(")) ++depth;
        if (token.is("}") || token.is(")")) --depth;
        if (depth == 0 && (tokens[position + 1].is(",") || tokens[position + 1].is(";"))) {
            ++position;
            return;
        }
        ++position;
    }
    fail(tokens[position], "an initialiser does not end");
}

void read_name(Declaration& declaration, const std::vector<Token>& tokens, size_t& position) {
    const Token& token = tokens[position++];
    if (token.kind != Token::Kind::kWord) fail(token, "expected a name, not '" + token.text + "'");
    Declaration::Name name;
    name.name = token.text;
    if (tokens[position].is("<")) {
        name.is_range = true;
        name.count = integer_literal(tokens[position + 1]);
        if (!tokens[position + 2].is(">")) fail(token, "expected '>'");
        position += 3;
    }
    while (tokens[position].is("[")) {
        if (tokens[position + 1].is("]")) {
            name.is_unsized = true;
            position += 2;
        } else {
            name.count *= integer_literal(tokens[position + 1]);
            if (!tokens[position + 2].is("]")) fail(token, "expected ']'");
            position += 3;
        }
    }
    if (tokens[position].is("=")) {
        name.initialiser = ++position;
        skip_initialiser(tokens, position);
    }
    declaration.names.push_back(std::move(name));
}

// Writes the elements of an initialiser one behind another; braces nest as the array's dimensions do.
class InitialiserWriter {
  public:
    InitialiserWriter(Variable& variable, Type type, const std::vector<Token>& tokens, const Module& module)
        : variable_(variable), type_(type), tokens_(tokens), module_(module) {}

    void write(size_t& position) {
        if (!tokens_[position].is("{")) {
            element(position);
            return;
        }
        ++position;
        while (!tokens_[position].is("}")) {
            write(position);
            if (tokens_[position].is(",")) ++position;
        }
        ++position;
    }

  private:
    void element(size_t& position) {
        const Token& token = tokens_[position];
        const bool generic = token.is("generic");
        if (generic) position += 2;
        const Operand operand = read_operand(tokens_, position);
        if (generic) {
            if (!tokens_[position].is(")")) fail(token, "expected ')'");
            ++position;
        }
        const uint64_t value = value_of(token, operand);
        const auto bytes = static_cast<uint64_t>(type_bytes(type_));
        if (offset_ + bytes > variable_.bytes) fail(token, "too many elements for " + variable_.name);
        std::memcpy(variable_.data + offset_, &value, bytes);
        offset_ += bytes;
    }

    uint64_t value_of(const Token& token, const Operand& operand) const {
        if (operand.kind == Operand::Kind::kInteger) return operand.value;
        if (operand.kind == Operand::Kind::kFloat && operand.bytes == type_bytes(type_)) return operand.value;
        if (operand.kind == Operand::Kind::kName && type_bytes(type_) == 8) {
            const auto found = module_.variables.find(operand.name);
            if (found != module_.variables.end())
                return reinterpret_cast<uint64_t>(found->second->data) +
                       static_cast<uint64_t>(operand.offset);
        }
        fail(token, "unsupported initialiser of " + variable_.name);
    }

    Variable& variable_;
    Type type_;
    const std::vector<Token>& tokens_;
    const Module& module_;
    uint64_t offset_ = 0;
};

}  // namespace

Declaration read_declaration(const std::vector<Token>& tokens, size_t& position) {
    Declaration declaration;
    read_directives(declaration, tokens, position);
    while (true) {
        read_name(declaration, tokens, position);
        if (!tokens[position].is(",")) return declaration;
        // A parameter list's comma separates declarations, not names.
        if (tokens[position + 1].text[0] == '.') return declaration;
        ++position;
    }
}

std::unique_ptr<Variable> make_variable(const Declaration& declaration, const Declaration::Name& name,
                                        const std::vector<Token>& tokens, const Module& module) {
    auto variable = std::make_unique<Variable>();
    variable->name = name.name;
    variable->space = declaration.space == ".const" ? Space::kConst : Space::kGlobal;
    variable->bytes = declaration.bytes(name);
    variable->storage.assign(variable->bytes + declaration.alignment, 0);
    const auto start = reinterpret_cast<uint64_t>(variable->storage.data());
    variable->data = variable->storage.data() + (0 - start) % declaration.alignment;
    size_t position = name.initialiser;
    if (position != 0) InitialiserWriter(*variable, declaration.type, tokens, module).write(position);
    return variable;
}

}  // namespace ptxsim
