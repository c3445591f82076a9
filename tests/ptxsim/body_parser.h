// The statements between a kernel's braces.
#pragma once
#include <map>
#include <set>
#include <string>
#include <vector>

#include "decoder.h"
#include "kernel_builder.h"
#include "lexer.h"
#include "operand.h"

namespace ptxsim {

struct FormalParameter {
    std::string name;
    uint64_t bytes = 0, alignment = 1;
};

// A function is kept as its place in the text and expanded where it is called.
struct Function {
    std::vector<FormalParameter> results, parameters;
    size_t body = 0;  // token of its '{'; 0: only declared
};

struct ParseContext {
    const std::string* source = nullptr;
    const std::vector<Token>* tokens = nullptr;
    Module* module = nullptr;
    SharedDeclarations shared;
    std::map<std::string, Function> functions;
};

class BodyParser {
  public:
    BodyParser(const ParseContext& context, KernelBuilder& builder)
        : context_(context), tokens_(*context.tokens), builder_(builder), decoder_(builder) {}

    // From the '{' at `position` to the matching '}'. `position` itself stays. Throws Fault("PARSE").
    void parse(size_t position);

  private:
    const Token& current() const { return tokens_[position_]; }
    void expect(const char* text);
    void block();
    void statement();
    void directive();
    void declare();
    void label_or_targets();
    void instruction();
    void call(const std::string& guard, bool guard_negated);
    void assertion(const std::vector<Operand>& arguments, const std::string& guard, bool negated);
    void expand(const std::string& name, const Function& function, const std::vector<Operand>& results,
                const std::vector<Operand>& arguments);
    void bind(const std::vector<FormalParameter>& formals, const std::vector<Symbol>& actuals);
    std::vector<Symbol> symbols_of(const std::vector<Operand>& operands);
    size_t jump(const std::string& guard, bool guard_negated);
    void skip_line();

    const ParseContext& context_;
    const std::vector<Token>& tokens_;
    KernelBuilder& builder_;
    Decoder decoder_;
    size_t position_ = 0;
    std::set<std::string> active_;            // functions being expanded
    std::vector<size_t>* returns_ = nullptr;  // of the function being expanded: jumps to its end
};

}  // namespace ptxsim
