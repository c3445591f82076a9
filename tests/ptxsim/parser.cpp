#include "parser.h"

#include <map>
#include <set>

#include "body_parser.h"
#include "declaration.h"
#include "fault.h"
#include "kernel_builder.h"
#include "operand.h"

namespace ptxsim {
namespace {

class ModuleParser {
  public:
    explicit ModuleParser(const std::string& source) : tokens_(tokenize(source)) {
        context_.source = &source;
        context_.tokens = &tokens_;
        context_.module = module_.get();
    }

    std::unique_ptr<Module> run() {
        while (tokens_[position_].kind != Token::Kind::kEnd) statement();
        // Kernels come last: they may use functions and variables that are defined behind them.
        for (const size_t start : kernels_) {
            position_ = start;
            kernel();
        }
        return std::move(module_);
    }

  private:
    [[noreturn]] void fail(const std::string& message) const {
        throw Fault("PARSE", "line " + std::to_string(tokens_[position_].line) + ": " + message);
    }

    const Token& current() const { return tokens_[position_]; }

    void expect(const char* text) {
        if (!current().is(text)) fail(std::string("expected '") + text + "', not '" + current().text + "'");
        ++position_;
    }

    void skip_line() {
        const int line = current().line;
        while (current().kind != Token::Kind::kEnd && current().line == line) ++position_;
    }

    void skip_braces() {
        int depth = 0;
        do {
            if (current().is("{")) ++depth;
            if (current().is("}")) --depth;
            if (current().kind == Token::Kind::kEnd) fail("a brace is not closed");
            ++position_;
        } while (depth != 0);
    }

    void statement() {
        if (current().is(".version") || current().is(".target")) {
            (current().is(".version") ? module_->version : module_->target) = tokens_[position_ + 1].text;
            skip_line();
        } else if (current().is(".address_size")) {
            if (!tokens_[position_ + 1].is("64")) fail("only 64-bit addresses are supported");
            skip_line();
        } else if (current().is(".file") || current().is(".loc")) {
            skip_line();
        } else if (current().is(".section")) {  // debug information
            position_ += 2;
            skip_braces();
        } else if (current().is(".pragma")) {
            while (!current().is(";")) ++position_;
            ++position_;
        } else {
            definition();
        }
    }

    // A kernel, a function or a variable, each perhaps behind its linkage.
    void definition() {
        size_t ahead = position_;
        while (tokens_[ahead].is(".visible") || tokens_[ahead].is(".extern") || tokens_[ahead].is(".weak"))
            ++ahead;
        if (tokens_[ahead].is(".entry")) {
            position_ = ahead + 1;
            kernels_.push_back(position_);
            skip_kernel();
        } else if (tokens_[ahead].is(".func")) {
            position_ = ahead + 1;
            function();
        } else {
            variables();
        }
    }

    void variables() {
        const Declaration declaration = read_declaration(tokens_, position_);
        for (const Declaration::Name& name : declaration.names) {
            if (declaration.space == ".shared") {
                context_.shared[name.name] = {declaration.bytes(name), declaration.alignment,
                                              declaration.is_extern || name.is_unsized};
            } else if (declaration.space == ".global" || declaration.space == ".const") {
                if (declaration.is_extern) fail("variable " + name.name + " is defined in another module");
                module_->variables[name.name] = make_variable(declaration, name, tokens_, *module_);
            } else {
                fail("a " + declaration.space + " variable at module level");
            }
        }
        expect(";");
    }

    std::vector<FormalParameter> parameters() {
        std::vector<FormalParameter> list;
        expect("(");
        while (!current().is(")")) {
            const Declaration declaration = read_declaration(tokens_, position_);
            if (declaration.space != ".param") fail("a parameter in " + declaration.space + " space");
            const Declaration::Name& name = declaration.names.front();
            list.push_back({name.name, declaration.bytes(name), declaration.alignment});
            if (current().is(",")) ++position_;
        }
        expect(")");
        return list;
    }

    // .maxntid 128, 1, 1: up to three numbers; missing ones are 1.
    std::array<int32_t, 3> extent() {
        std::array<int32_t, 3> values{1, 1, 1};
        for (int32_t& value : values) {
            value = static_cast<int32_t>(integer_literal(tokens_[position_++]));
            if (!current().is(",")) break;
            ++position_;
        }
        return values;
    }

    void kernel_directive(Kernel& kernel) {
        const std::string directive = current().text;
        ++position_;
        if (directive == ".maxntid") {
            kernel.max_threads = extent();
        } else if (directive == ".reqntid") {
            kernel.required_threads = extent();
        } else if (directive == ".reqnctapercluster") {
            kernel.cluster = extent();
        } else if (directive == ".maxclusterrank") {
            kernel.max_cluster_rank = extent()[0];
        } else if (directive == ".minnctapersm") {
            kernel.min_ctas = extent()[0];
        } else if (directive == ".maxnreg") {
            kernel.max_registers = extent()[0];
        } else if (directive == ".explicitcluster") {
            kernel.explicit_cluster = true;
        } else {
            --position_;
            fail("unknown directive " + directive + " of a kernel");
        }
    }

    void skip_kernel() {
        while (!current().is(")") && !current().is("{")) ++position_;
        while (!current().is("{") && !current().is(";")) ++position_;
        if (current().is("{"))
            skip_braces();
        else
            ++position_;
    }

    void kernel() {
        auto kernel = std::make_unique<Kernel>();
        kernel->name = current().text;
        ++position_;
        KernelBuilder builder(*kernel, *module_, context_.shared);
        if (current().is("("))
            for (const FormalParameter& parameter : parameters())
                builder.declare_parameter(parameter.name, parameter.bytes, parameter.alignment);
        if (current().is(";")) return;  // a declaration only
        while (!current().is("{")) kernel_directive(*kernel);
        BodyParser(context_, builder).parse(position_);
        builder.finish();
        module_->kernels[kernel->name] = std::move(kernel);
    }

    void function() {
        Function function;
        if (current().is("(")) function.results = parameters();
        const std::string name = current().text;
        ++position_;
        if (current().is("(")) function.parameters = parameters();
        while (!current().is("{") && !current().is(";")) {
            if (!current().is(".noreturn")) fail("unknown directive " + current().text + " of a function");
            ++position_;
        }
        if (current().is(";")) {
            ++position_;
            context_.functions.emplace(name, function);  // perhaps defined later, or outside
            return;
        }
        function.body = position_;
        skip_braces();
        context_.functions[name] = function;
    }

    std::vector<Token> tokens_;
    size_t position_ = 0;
    std::unique_ptr<Module> module_ = std::make_unique<Module>();
    ParseContext context_;
    std::vector<size_t> kernels_;  // tokens of their names
};

}  // namespace

std::unique_ptr<Module> parse_module(const std::string& text) { return ModuleParser(text).run(); }

}  // namespace ptxsim
