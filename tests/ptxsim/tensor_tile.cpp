#include "tensor_tile.h"

#include <cmath>
#include <cstring>

#include "fault.h"
#include "formats.h"

namespace ptxsim {
namespace {

// Packed elements as doubles, `stride` apart.
void decode(Type type, const uint8_t* bytes, int count, double sign, double* out, int stride) {
    const auto each = [&](auto value) {
        for (int i = 0; i < count; ++i) out[i * stride] = sign * double{value(i)};
    };
    const auto half = [bytes](int i) {
        uint16_t bits;
        std::memcpy(&bits, bytes + 2 * i, 2);
        return bits;
    };
    switch (type) {
        case Type::kE4M3:
            return each([bytes](int i) { return e4m3_to_float(bytes[i]); });
        case Type::kE5M2:
            return each([bytes](int i) { return e5m2_to_float(bytes[i]); });
        case Type::kBF16:
            return each([half](int i) { return bf16_to_float(half(i)); });
        case Type::kF16:
            return each([half](int i) { return half_to_float(half(i)); });
        default:
            throw Fault("UNSUPPORTED",
                        std::string("a matrix product of elements of type ") + type_name(type));
    }
}

float short_sum(double c, const double* products, int count, int64_t fraction_bits) {
    double largest = std::fabs(c), total = c;
    for (int i = 0; i < count; ++i) {
        largest = std::fmax(largest, std::fabs(products[i]));
        total += products[i];
    }
    if (!std::isfinite(total) || largest == 0) return static_cast<float>(total);
    const auto cut = [&](double value, double unit) { return std::floor(value / unit) * unit; };
    const auto unit_below = [&](double value) {
        return std::ldexp(1.0, std::ilogb(value) - static_cast<int>(fraction_bits));
    };
    const double unit = unit_below(largest);
    double sum = cut(c, unit);
    for (int i = 0; i < count; ++i) sum += cut(products[i], unit);
    return sum == 0 ? 0.f : static_cast<float>(cut(sum, unit_below(sum)));
}

using Four [[gnu::vector_size(32)]] = double;

}  // namespace

void TensorTile::set_a(int row, int index, Type type, const uint8_t* bytes, int count, double sign) {
    decode(type, bytes, count, sign, &a_[static_cast<size_t>(row * depth + index)], 1);
}

void TensorTile::set_b(int column, int index, Type type, const uint8_t* bytes, int count) {
    decode(type, bytes, count, 1, &b_[static_cast<size_t>(index * columns + column)], columns);
}

// Four rows and eight columns at a time, in registers: most of the time of a matrix product goes here.
void TensorTile::add_exact(float* c) const {
    for (int row = 0; row < kTileRows; row += 4)
        for (int column = 0; column < columns; column += 8) {
            Four sums[4][2] = {};
            for (int j = 0; j < depth; ++j) {
                const double* const elements = &b_[static_cast<size_t>(j * columns + column)];
                Four b0, b1;
                std::memcpy(&b0, elements, sizeof b0);
                std::memcpy(&b1, elements + 4, sizeof b1);
                for (int r = 0; r < 4; ++r) {
                    const double a = a_[static_cast<size_t>((row + r) * depth + j)];
                    sums[r][0] += a * b0;
                    sums[r][1] += a * b1;
                }
            }
            for (int r = 0; r < 4; ++r)
                for (int i = 0; i < 8; ++i) {
                    float& result = c[(row + r) * columns + column + i];
                    result = static_cast<float>(result + sums[r][i / 4][i % 4]);
                }
        }
}

void TensorTile::multiply_add(float* c, int64_t fraction_bits) const {
    if (fraction_bits == 0) return add_exact(c);
    std::array<double, kMostTileDepth> products;
    for (int row = 0; row < kTileRows; ++row)
        for (int column = 0; column < columns; ++column) {
            for (int j = 0; j < depth; ++j)
                products[static_cast<size_t>(j)] =
                    a_[static_cast<size_t>(row * depth + j)] * b_[static_cast<size_t>(j * columns + column)];
            float& result = c[row * columns + column];
            result = short_sum(result, products.data(), depth, fraction_bits);
        }
}

}  // namespace ptxsim
