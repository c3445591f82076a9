#include "lexer.h"

#include <cctype>

#include "fault.h"

namespace ptxsim {
namespace {

bool starts_word(char c) {
    return std::isalpha(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%' || c == '.';
}

bool continues_word(char c) { return starts_word(c) || std::isdigit(static_cast<unsigned char>(c)); }

class Lexer {
  public:
    explicit Lexer(const std::string& source) : source_(source) {}

    std::vector<Token> run() {
        std::vector<Token> tokens;
        while (true) {
            skip_blanks();
            tokens.push_back(next());
            if (tokens.back().kind == Token::Kind::kEnd) return tokens;
        }
    }

  private:
    char at(size_t offset = 0) const {
        return position_ + offset < source_.size() ? source_[position_ + offset] : '\0';
    }

    [[noreturn]] void fail(const std::string& message) const {
        throw Fault("PARSE", "line " + std::to_string(line_) + ": " + message);
    }

    void advance() {
        if (source_[position_] == '\n') ++line_;
        ++position_;
    }

    void skip_blanks() {
        while (position_ < source_.size()) {
            if (std::isspace(static_cast<unsigned char>(at()))) {
                advance();
            } else if (at() == '/' && at(1) == '/') {
                while (position_ < source_.size() && at() != '\n') advance();
            } else if (at() == '/' && at(1) == '*') {
                while (position_ < source_.size() && !(at() == '*' && at(1) == '/')) advance();
                if (position_ >= source_.size()) fail("a comment does not end");
                position_ += 2;
            } else {
                return;
            }
        }
    }

    Token next() {
        Token token;
        token.line = line_;
        token.begin = position_;
        if (position_ >= source_.size()) {
            token.end = position_;
            return token;
        }
        const char c = at();
        if (starts_word(c)) {
            token.kind = Token::Kind::kWord;
            read_word();
        } else if (std::isdigit(static_cast<unsigned char>(c))) {
            token.kind = Token::Kind::kNumber;
            read_number();
        } else if (c == '"') {
            token.kind = Token::Kind::kString;
            read_string();
        } else if (std::string("{}[]()<>,;:=+-|!@").find(c) != std::string::npos) {
            token.kind = Token::Kind::kPunctuation;
            ++position_;
        } else {
            fail(std::string("unexpected character '") + c + "'");
        }
        token.end = position_;
        token.text = source_.substr(token.begin, token.end - token.begin);
        return token;
    }

    // "::" belongs to a word (.shared::cluster), a single ':' ends a label.
    void read_word() {
        while (continues_word(at()) ||
               (at() == ':' && at(1) == ':' && std::isalnum(static_cast<unsigned char>(at(2)))))
            position_ += at() == ':' ? 2 : 1;
    }

    // 12, 12U, 0x1f, 0f3f800000, 0d3ff0000000000000, 1.5, 1.5e-3
    void read_number() {
        const bool coded = at() == '0' && std::isalpha(static_cast<unsigned char>(at(1)));
        while (true) {
            const char c = at();
            if (std::isalnum(static_cast<unsigned char>(c)) || c == '.') {
                ++position_;
            } else if (!coded && (c == '+' || c == '-') && std::tolower(source_[position_ - 1]) == 'e') {
                ++position_;
            } else {
                return;
            }
        }
    }

    void read_string() {
        advance();
        while (position_ < source_.size() && at() != '"') {
            if (at() == '\\') advance();
            advance();
        }
        if (position_ >= source_.size()) fail("a string does not end");
        advance();
    }

    const std::string& source_;
    size_t position_ = 0;
    int line_ = 1;
};

}  // namespace

std::vector<Token> tokenize(const std::string& source) { return Lexer(source).run(); }

}  // namespace ptxsim
