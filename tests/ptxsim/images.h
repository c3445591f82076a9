// Device code as a program registers it: fat binaries with PTX inside, their kernels and variables, found by
// the address of the host's stub or shadow variable.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>

#include "program.h"

namespace ptxsim {

// One fat binary or one PTX text. Parsed when first used: a library of operators registers all of its
// kernels, a test launches two.
class Image {
  public:
    static std::unique_ptr<Image> from_fat_binary(const void* wrapper);
    static std::unique_ptr<Image> from_text(std::string text);

    // Throws Fault("IMAGE") where the fat binary holds no PTX that a device of this capability runs, or only
    // compressed PTX; Fault("PARSE") as the parser does.
    Module& module(int64_t capability);
    bool parsed() const { return module_ != nullptr; }

  private:
    const uint8_t* fat_binary_ = nullptr;
    std::string text_;
    std::unique_ptr<Module> module_;
};

struct Function {
    Image* image = nullptr;
    std::string name;
    // Set by cudaFuncSetAttribute.
    uint32_t max_dynamic_shared = 0;  // 0: never set
    bool non_portable_cluster = false;
};

struct Symbol {
    Image* image = nullptr;
    std::string name;
    uint64_t bytes = 0;
};

struct Images {
    std::map<Image*, std::unique_ptr<Image>> loaded;
    std::unordered_map<const void*, Function> functions;
    std::unordered_map<const void*, Symbol> symbols;

    Image* add(std::unique_ptr<Image> image);
    void remove(Image* image);  // with its functions and symbols
};

}  // namespace ptxsim
