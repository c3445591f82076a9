// Every kernel of the permute family on ragged shapes and buffers of the exact size, copies against their
// definition and sums bit for bit against the generic tier.
#include "cpu/permute.h"

#include "formats/bits.h"
#include "harness.h"

namespace {

using namespace dse;
using namespace dse::sanitized;

constexpr int64_t kTokens = 37, kTopK = 5, kExperts = 9, kChoices = kTokens * kTopK;
constexpr int64_t kWidths[] = {0, 1, 2, 7, 16, 64, 130, 511, 512, 1100};
constexpr FloatType kTypes[] = {FloatType::kFloat32, FloatType::kBfloat16, FloatType::kFloat16};

int64_t bytes_of(FloatType type) { return type == FloatType::kFloat32 ? 4 : 2; }

Buffer<int32_t> some_indices(int64_t count, int32_t experts, uint32_t seed) {
    std::mt19937 generator(seed);
    Buffer<int32_t> indices(count);
    for (int64_t i = 0; i < count; ++i) indices[i] = static_cast<int32_t>(generator() % (experts + 1)) - 1;
    return indices;
}

struct Order {
    Order(const Buffer<int32_t>& indices, int64_t experts)
        : rows(indices.size()), slots(indices.size()), offs(experts) {
        cpu::expert_order(indices.data(), indices.size(), experts, rows.data(), slots.data(), offs.data(),
                          threads());
    }
    RowOrder row_order() const { return {rows.data(), rows.size(), kTopK}; }
    Slots token_slots() const { return {slots.data(), slots.size() / kTopK, kTopK}; }
    Buffer<int32_t> rows, slots, offs;
};

Order some_order() { return Order(some_indices(kChoices, kExperts, 1), kExperts); }

// Numbers near 1 of every third row, any bits elsewhere; the last row ends where its buffer ends.
struct Matrix {
    Matrix(int64_t rows, int64_t columns, FloatType type, int64_t gap, bool ordinary = false)
        : stride(columns + gap),
          buffer(rows == 0 ? 0 : ((rows - 1) * stride + columns) * bytes_of(type)),
          matrix{buffer.data(), type, rows, columns, stride} {
        fill_bits(buffer, static_cast<uint32_t>(rows * 1000 + columns));
        const int64_t size = bytes_of(type);
        for (int64_t i = 0; i < buffer.size() / size; ++i) {
            if (!ordinary && i / stride % 3 != 0) continue;
            unsigned char* top = buffer.data() + i * size + size - 1;
            *top = static_cast<unsigned char>((*top & 0x80) | 0x3f);
        }
    }
    ByteMatrix bytes() const {
        const int64_t size = bytes_of(matrix.type);
        return {buffer.data(), matrix.rows, matrix.columns * size, stride * size};
    }
    int64_t stride;
    Buffer<unsigned char> buffer;
    FloatMatrix matrix;
};

// Whether two results of one type are the same numbers, any NaN counting as any other.
bool same_numbers(const Buffer<unsigned char>& a, const Buffer<unsigned char>& b, FloatType type) {
    const uint32_t infinity = type == FloatType::kFloat32    ? kFloatInfBits
                              : type == FloatType::kBfloat16 ? 0x7f80u
                                                             : 0x7c00u;
    const uint32_t magnitude = type == FloatType::kFloat32 ? 0x7fffffffu : 0x7fffu;
    const int64_t size = bytes_of(type);
    for (int64_t i = 0; i < a.size(); i += size) {
        uint32_t x = 0, y = 0;
        std::memcpy(&x, a.data() + i, size);
        std::memcpy(&y, b.data() + i, size);
        const bool both_nan = (x & magnitude) > infinity && (y & magnitude) > infinity;
        if (x != y && !both_nan) return false;
    }
    return true;
}

SANITIZED_CASE(expert_order) {
    for (const int64_t count : {int64_t{0}, int64_t{1}, kChoices, int64_t{100003}})
        for (const int32_t experts : {1, 7, 256}) {
            const Buffer<int32_t> indices = some_indices(count, experts, 3);
            const Order order(indices, experts);
            int64_t at = 0;
            for (int32_t e = 0; e < experts; ++e) {
                for (int64_t i = 0; i < count; ++i) {
                    if (indices[i] != e) continue;
                    EXPECT(order.rows[at] == i && order.slots[i] == at);
                    ++at;
                }
                EXPECT(order.offs[e] == at);
            }
            for (; at < count; ++at) EXPECT(order.rows[at] == -1);
            Buffer<int32_t> inverse(count);
            EXPECT(cpu::inverse_order(order.rows.data(), count, count, inverse.data()) == -1);
            EXPECT(inverse == order.slots);
        }
}

SANITIZED_CASE(first_outside) {
    Buffer<int32_t> values(3000, 0);
    EXPECT(cpu::first_outside(values.data(), values.size(), 1) == -1);
    EXPECT(cpu::first_outside(values.data(), 0, 0) == -1);
    for (const int64_t at : {0, 1023, 1024, 2999})
        for (const int32_t bad : {INT32_MIN, -2, 1, INT32_MAX}) {
            values[at] = bad;
            EXPECT(cpu::first_outside(values.data(), values.size(), 1) == at);
            values[at] = -1;
            EXPECT(cpu::first_outside(values.data(), values.size(), 1) == -1);
        }
    values[5] = INT32_MAX;
    EXPECT(cpu::first_outside(values.data(), values.size(), INT64_MAX) == -1);
}

SANITIZED_CASE(gather_bytes) {
    const Order order = some_order();
    for (const int64_t width : kWidths)
        for (const FloatType type : kTypes)
            for (const int64_t gap : {0, 3}) {
                const Matrix x(kTokens, width, type, gap);
                const ByteMatrix bytes = x.bytes();
                Buffer<uint8_t> out(kChoices * bytes.width);
                cpu::gather_bytes(bytes, order.row_order(), out.data(), threads());
                const Buffer<uint8_t> zeros(bytes.width, 0);
                for (int64_t i = 0; i < kChoices && bytes.width > 0; ++i) {
                    const uint8_t* wanted = order.rows[i] < 0
                                                ? zeros.data()
                                                : bytes.data + order.rows[i] / kTopK * bytes.row_stride;
                    EXPECT(std::memcmp(out.data() + i * bytes.width, wanted, bytes.width) == 0);
                }
            }
}

SANITIZED_CASE(gather_scales) {
    const Order order = some_order();
    for (const int64_t columns : {0, 1, 5}) {
        Buffer<float> by_row(kTokens * columns), by_column(kTokens * columns);
        fill_normal(by_row, 1);
        for (int64_t t = 0; t < kTokens; ++t)
            for (int64_t c = 0; c < columns; ++c) by_column[c * kTokens + t] = by_row[t * columns + c];
        Buffer<float> out(kChoices * columns), again(kChoices * columns);
        cpu::gather_scales(by_row.data(), columns, columns, 1, order.row_order(), out.data(), threads());
        cpu::gather_scales(by_column.data(), columns, 1, kTokens, order.row_order(), again.data(), threads());
        EXPECT(out == again);
        for (int64_t i = 0; i < out.size(); ++i) {
            const int32_t row = order.rows[i / columns];
            EXPECT(out[i] == (row < 0 ? 1.0f : by_row[row / kTopK * columns + i % columns]));
        }
    }
}

SANITIZED_CASE(combine_and_weighted_gather) {
    const Order order = some_order();
    Buffer<float> weights(kChoices);
    fill_normal(weights, 2);
    const float* const with_and_without[] = {nullptr, weights.data()};
    for (const int64_t width : kWidths)
        for (const FloatType type : kTypes)
            for (const int64_t gap : {0, 3}) {
                const Matrix rows(kChoices, width, type, gap), residual(kTokens, width, type, gap);
                for (const float* factors : with_and_without)
                    for (const bool with_residual : {false, true}) {
                        Buffer<unsigned char> out(kTokens * width * bytes_of(type)),
                            generic(kTokens * width * bytes_of(type), 0x5a);
                        const FloatMatrix added = with_residual ? residual.matrix : FloatMatrix{};
                        const auto call = [&](Buffer<unsigned char>& to) {
                            cpu::combine_rows(rows.matrix, order.token_slots(), factors, added, to.data(),
                                              threads());
                        };
                        on_generic([&] { call(generic); });
                        call(out);
                        EXPECT(same_numbers(out, generic, type));
                    }
                Buffer<unsigned char> out(kChoices * width * bytes_of(type)),
                    generic(kChoices * width * bytes_of(type), 0x5a);
                const auto call = [&](Buffer<unsigned char>& to) {
                    cpu::gather_weighted(residual.matrix, weights.data(), order.row_order(), to.data(),
                                         threads());
                };
                on_generic([&] { call(generic); });
                call(out);
                EXPECT(same_numbers(out, generic, type));
            }
}

SANITIZED_CASE(row_dots) {
    const Order order = some_order();
    for (const int64_t width : kWidths)
        for (const FloatType type : kTypes) {
            const Matrix x(kTokens, width, type, 3, true), rows(kChoices, width, type, 3, true);
            Buffer<float> out(kChoices), generic(kChoices, 0x5a);
            const auto call = [&](Buffer<float>& to) {
                cpu::row_dots(x.matrix, rows.matrix, order.token_slots(), to.data(), threads());
            };
            on_generic([&] { call(generic); });
            call(out);
            EXPECT(out == generic);
        }
}

}  // namespace
