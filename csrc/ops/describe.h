// Tensors in words, as Python prints them: what the messages of argument checks are made of.
#pragma once
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cctype>
#include <string>
#include <vector>

namespace dse {

inline std::string describe(const std::vector<int64_t>& shape) {
    std::string text = "[";
    for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + "]";
}

inline std::vector<int64_t> shape_of(const torch::stable::Tensor& x) {
    const auto sizes = x.sizes();
    return {sizes.begin(), sizes.end()};
}

inline std::vector<int64_t> strides_of(const torch::stable::Tensor& x) {
    const auto strides = x.strides();
    return {strides.begin(), strides.end()};
}

inline std::string describe(const torch::stable::Tensor& x) { return describe(shape_of(x)); }

inline std::string describe(torch::headeronly::ScalarType dtype) {
    using torch::headeronly::ScalarType;
    switch (dtype) {
        case ScalarType::ComplexHalf:
            return "complex32";
        case ScalarType::ComplexFloat:
            return "complex64";
        case ScalarType::ComplexDouble:
            return "complex128";
        case ScalarType::UInt16:
            return "uint16";
        case ScalarType::UInt32:
            return "uint32";
        case ScalarType::UInt64:
            return "uint64";
        case ScalarType::Byte:
            return "uint8";
        case ScalarType::Char:
            return "int8";
        case ScalarType::Short:
            return "int16";
        case ScalarType::Int:
            return "int32";
        case ScalarType::Long:
            return "int64";
        case ScalarType::Bool:
            return "bool";
        case ScalarType::Half:
            return "float16";
        case ScalarType::BFloat16:
            return "bfloat16";
        case ScalarType::Float:
            return "float32";
        case ScalarType::Double:
            return "float64";
        default: {  // as torch's C++ names it, but in Python's capitals: float8_e4m3fn
            std::string name = torch::headeronly::toString(dtype);
            for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
            return name;
        }
    }
}

}  // namespace dse
