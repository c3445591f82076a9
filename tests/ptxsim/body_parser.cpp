#include "body_parser.h"

#include <utility>

#include "declaration.h"
#include "fault.h"

namespace ptxsim {
namespace {

std::string one_line(const std::string& text) {
    std::string line;
    for (const char c : text) {
        const bool blank = c == ' ' || c == '\t' || c == '\n' || c == '\r';
        if (!blank)
            line += c;
        else if (!line.empty() && line.back() != ' ')
            line += ' ';
    }
    return line;
}

int register_width(Type type) { return type == Type::kPred ? 1 : 8 * type_bytes(type); }

}  // namespace

void BodyParser::parse(size_t position) {
    position_ = position;
    block();
}

void BodyParser::expect(const char* text) {
    if (!current().is(text))
        throw Fault("PARSE", std::string("expected '") + text + "', not '" + current().text + "'");
    ++position_;
}

void BodyParser::skip_line() {
    const int line = current().line;
    while (current().kind != Token::Kind::kEnd && current().line == line) ++position_;
}

// Statements up to the matching brace, in the current scope. Errors get the line and the text of the
// statement.
void BodyParser::block() {
    expect("{");
    builder_.enter_scope();
    while (!current().is("}")) {
        const size_t start = position_;
        try {
            statement();
        } catch (const Fault& fault) {
            if (fault.kind != "PARSE" || fault.detail.rfind("line ", 0) == 0) throw;
            size_t end = start;
            while (tokens_[end].kind != Token::Kind::kEnd && !tokens_[end].is(";")) ++end;
            const std::string text =
                context_.source->substr(tokens_[start].begin, tokens_[end].begin - tokens_[start].begin);
            throw Fault("PARSE", "line " + std::to_string(tokens_[start].line) + ": " + fault.detail + ": " +
                                     one_line(text).substr(0, 200));
        }
    }
    builder_.leave_scope();
    ++position_;
}

void BodyParser::statement() {
    const Token& token = current();
    if (token.kind == Token::Kind::kEnd) throw Fault("PARSE", "the text ends within a body");
    if (token.is("{")) {
        block();
    } else if (token.is(";")) {
        ++position_;
    } else if (token.kind == Token::Kind::kWord && token.text[0] == '.') {
        directive();
    } else if (token.kind == Token::Kind::kWord && tokens_[position_ + 1].is(":")) {
        label_or_targets();
    } else {
        instruction();
    }
}

void BodyParser::directive() {
    if (current().is(".loc") || current().is(".file")) {
        skip_line();
    } else if (current().is(".pragma")) {
        while (!current().is(";")) ++position_;
        ++position_;
    } else {
        declare();
    }
}

void BodyParser::declare() {
    const Declaration declaration = read_declaration(tokens_, position_);
    expect(";");
    for (const Declaration::Name& name : declaration.names) {
        if (name.initialiser != 0) throw Fault("PARSE", "only module-level variables have initialisers");
        if (declaration.space == ".reg") {
            const int bits = register_width(declaration.type);
            if (bits != 1 && (bits < 16 || bits > 64)) throw Fault("PARSE", "unsupported register width");
            if (!name.is_range) builder_.declare_register(name.name, bits);
            for (uint64_t i = 0; name.is_range && i < name.count; ++i)
                builder_.declare_register(name.name + std::to_string(i), bits);
        } else if (declaration.space == ".shared") {
            builder_.declare_shared(name.name, {declaration.bytes(name), declaration.alignment,
                                                declaration.is_extern || name.is_unsized});
        } else if (declaration.space == ".local") {
            builder_.declare_local(name.name, declaration.bytes(name), declaration.alignment);
        } else if (declaration.space == ".param") {
            builder_.declare_call_parameter(name.name, declaration.bytes(name), declaration.alignment);
        } else {
            throw Fault("PARSE", "a " + declaration.space + " variable within a body");
        }
    }
}

void BodyParser::label_or_targets() {
    const std::string name = current().text;
    position_ += 2;
    if (!current().is(".branchtargets")) {
        builder_.define_label(name);
        return;
    }
    std::vector<std::string> labels;
    do {
        ++position_;
        labels.push_back(current().text);
        ++position_;
    } while (current().is(","));
    expect(";");
    builder_.define_targets(name, std::move(labels));
}

void BodyParser::instruction() {
    const size_t start = position_;
    std::string guard;
    bool guard_negated = false;
    if (current().is("@")) {
        ++position_;
        if (current().is("!")) {
            guard_negated = true;
            ++position_;
        }
        guard = current().text;
        ++position_;
    }
    if (current().kind != Token::Kind::kWord) throw Fault("PARSE", "expected an instruction");
    const std::string written = current().text;
    ++position_;
    if (written == "call" || written == "call.uni") {
        call(guard, guard_negated);
        return;
    }
    std::vector<Operand> operands;
    while (!current().is(";")) {
        operands.push_back(read_operand(tokens_, position_));
        if (current().is(",")) {
            ++position_;
        } else if (!current().is(";")) {
            throw Fault("PARSE", "expected ',' or ';', not '" + current().text + "'");
        }
    }
    const std::string text =
        context_.source->substr(tokens_[start].begin, current().begin - tokens_[start].begin);
    ++position_;
    if ((written == "ret" || written == "ret.uni") && returns_ != nullptr) {
        returns_->push_back(jump(guard, guard_negated));
        return;
    }
    decoder_.decode(written, operands, guard, guard_negated, tokens_[start].line, one_line(text));
}

// Appends a branch whose target the caller sets.
size_t BodyParser::jump(const std::string& guard, bool guard_negated) {
    Instruction branch;
    branch.opcode = Opcode::kBranch;
    branch.line = current().line;
    branch.text = "(return of an expanded function)";
    if (!guard.empty()) {
        branch.guard = decoder_.predicate(guard);
        branch.guard_negated = guard_negated;
    }
    builder_.kernel().code.push_back(std::move(branch));
    return builder_.kernel().code.size() - 1;
}

// call{.uni} (results), name, (arguments);  both lists may be missing.
void BodyParser::call(const std::string& guard, bool guard_negated) {
    std::vector<Operand> parts;
    while (!current().is(";")) {
        parts.push_back(read_operand(tokens_, position_));
        if (current().is(",")) ++position_;
    }
    ++position_;
    std::vector<Operand> results, arguments;
    size_t next = 0;
    if (next < parts.size() && parts[next].kind == Operand::Kind::kList) results = parts[next++].parts;
    if (next == parts.size() || parts[next].kind != Operand::Kind::kName)
        throw Fault("PARSE", "expected the name of a function");
    const std::string name = parts[next++].name;
    if (next < parts.size() && parts[next].kind == Operand::Kind::kList) arguments = parts[next++].parts;
    if (next != parts.size()) throw Fault("PARSE", "calls through pointers are not supported");

    if (name == "__assertfail") {
        assertion(arguments, guard, guard_negated);
        return;
    }
    const auto found = context_.functions.find(name);
    if (found == context_.functions.end() || found->second.body == 0)
        throw Fault("PARSE", "a call of " + name + ", which this module does not define");
    if (active_.count(name)) throw Fault("PARSE", "recursion: " + name + " calls itself");
    size_t around = 0;
    if (!guard.empty()) around = jump(guard, !guard_negated);
    expand(name, found->second, results, arguments);
    if (!guard.empty()) builder_.kernel().code[around].target = builder_.next_instruction();
}

std::vector<Symbol> BodyParser::symbols_of(const std::vector<Operand>& operands) {
    std::vector<Symbol> symbols;
    for (const Operand& operand : operands) {
        const Symbol* symbol = operand.kind == Operand::Kind::kName ? builder_.find(operand.name) : nullptr;
        if (symbol == nullptr || symbol->kind != Symbol::Kind::kCallParameter)
            throw Fault("PARSE", "call operands must be .param variables");
        symbols.push_back(*symbol);
    }
    return symbols;
}

void BodyParser::assertion(const std::vector<Operand>& arguments, const std::string& guard, bool negated) {
    if (arguments.size() < 4) throw Fault("PARSE", "__assertfail takes message, file, line, function, size");
    Instruction failure;
    failure.opcode = Opcode::kAssertFail;
    failure.line = current().line;
    failure.text = "call __assertfail";
    failure.space = Space::kLocal;
    if (!guard.empty()) {
        failure.guard = decoder_.predicate(guard);
        failure.guard_negated = negated;
    }
    const std::vector<Symbol> symbols = symbols_of(arguments);
    for (size_t i = 0; i < 4; ++i)
        failure.addresses.push_back({builder_.constant(0), static_cast<int64_t>(symbols[i].value)});
    builder_.kernel().code.push_back(std::move(failure));
}

void BodyParser::bind(const std::vector<FormalParameter>& formals, const std::vector<Symbol>& actuals) {
    if (formals.size() != actuals.size()) throw Fault("PARSE", "wrong number of call operands");
    for (size_t i = 0; i < formals.size(); ++i) builder_.bind(formals[i].name, actuals[i]);
}

// The function's statements, with its parameters standing for the caller's variables and its returns for
// jumps behind the last statement.
void BodyParser::expand(const std::string& name, const Function& function,
                        const std::vector<Operand>& results, const std::vector<Operand>& arguments) {
    const std::vector<Symbol> result_symbols = symbols_of(results), argument_symbols = symbols_of(arguments);
    std::vector<size_t> returns;
    const size_t behind_call = std::exchange(position_, function.body);
    auto* const outer_returns = std::exchange(returns_, &returns);
    active_.insert(name);
    builder_.enter_scope(true);
    bind(function.results, result_symbols);
    bind(function.parameters, argument_symbols);
    block();
    builder_.leave_scope();
    active_.erase(name);
    for (const size_t branch : returns) builder_.kernel().code[branch].target = builder_.next_instruction();
    returns_ = outer_returns;
    position_ = behind_call;
}

}  // namespace ptxsim
