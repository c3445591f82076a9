// Every kernel of the quantize family on ragged shapes, all kinds of numbers, and buffers of the exact size,
// compared bit for bit with the generic tier.
#include "cpu/quantize.h"

#include "formats/e5m6.h"
#include "formats/tiles.h"
#include "harness.h"

namespace {

using namespace dse;
using namespace dse::sanitized;

struct Shape {
    int64_t rows, columns;
};
constexpr Shape kShapes[] = {{0, 0},     {0, 7},     {5, 0},    {1, 1},    {3, 127},
                             {128, 128}, {130, 300}, {129, 64}, {67, 577}, {256, 2200}};
constexpr FloatType kTypes[] = {FloatType::kFloat32, FloatType::kBfloat16, FloatType::kFloat16};

int64_t bytes_of(FloatType type) { return type == FloatType::kFloat32 ? 4 : 2; }

// A matrix whose last row ends where its buffer ends. Every third row holds any bits, so NaN, infinity and
// subnormals; the others hold numbers near 1.
struct Floats {
    Floats(Shape shape, FloatType type, int64_t gap)
        : stride(shape.columns + gap),
          buffer(shape.rows == 0 ? 0 : ((shape.rows - 1) * stride + shape.columns) * bytes_of(type)),
          matrix{buffer.data(), type, shape.rows, shape.columns, stride} {
        fill_bits(buffer, static_cast<uint32_t>(shape.rows * 1000 + shape.columns));
        const int64_t size = bytes_of(type);
        for (int64_t i = 0; i < buffer.size() / size; ++i) {
            if (i / stride % 3 == 0) continue;
            unsigned char* top = buffer.data() + i * size + size - 1;
            *top = static_cast<unsigned char>((*top & 0x80) | 0x3f);
        }
    }
    int64_t stride;
    Buffer<unsigned char> buffer;
    FloatMatrix matrix;
};

struct Codes {
    Codes(Shape shape, int64_t gap, int64_t row_bytes, int64_t rows_per_scale)
        : stride(row_bytes + gap),
          codes(shape.rows == 0 ? 0 : (shape.rows - 1) * stride + row_bytes),
          scales(ceil_div(shape.rows, rows_per_scale) * num_tiles(shape.columns)) {
        fill_bits(codes, static_cast<uint32_t>(shape.rows * 999 + shape.columns));
        fill_bits(scales, static_cast<uint32_t>(shape.columns));
        for (int64_t i = 0; i < scales.size(); ++i)
            if (i % 3) scales[i] = 0.01f * static_cast<float>(i + 1);
    }
    int64_t stride;
    Buffer<uint8_t> codes;
    Buffer<float> scales;
};

// One result on the current tier, one on the generic tier, each first filled with a pattern of its own.
template <class T>
struct Pair {
    explicit Pair(int64_t size) : current(size, 0xa5), generic(size, 0x5a) {}
    Buffer<T> current, generic;
};

template <class Call, class... Results>
void compare(const Call& call, Pair<Results>&... results) {
    on_generic([&] { call(results.generic.data()...); });
    call(results.current.data()...);
    EXPECT(((results.current == results.generic) && ...));
}

// Group ends for `rows` rows: an empty group first, ragged ones, some rows left over.
Buffer<int32_t> some_groups(int64_t rows) {
    Buffer<int32_t> ends(4);
    ends[0] = 0;
    ends[1] = static_cast<int32_t>(rows / 3);
    ends[2] = static_cast<int32_t>(rows / 3);
    ends[3] = static_cast<int32_t>(rows - rows / 5);
    return ends;
}

SANITIZED_CASE(quantize_tiles) {
    for (const Shape shape : kShapes)
        for (const FloatType type : kTypes)
            for (const int64_t gap : {0, 3})
                for (const bool power_of_2 : {false, true}) {
                    const Floats x(shape, type, gap);
                    Pair<uint8_t> codes(shape.rows * shape.columns);
                    Pair<float> scales(shape.rows * num_tiles(shape.columns));
                    compare([&](uint8_t* c,
                                float* s) { cpu::quantize_tiles(x.matrix, power_of_2, c, s, threads()); },
                            codes, scales);
                }
}

SANITIZED_CASE(quantize_tiles_both_and_transposed) {
    for (const Shape shape : kShapes)
        for (const FloatType type : kTypes)
            for (const int64_t gap : {0, 3})
                for (const bool grouped : {false, true}) {
                    const Floats x(shape, type, gap);
                    const Buffer<int32_t> ends = some_groups(shape.rows);
                    const Groups groups{grouped ? ends.data() : nullptr, grouped ? ends.size() : 0};
                    const int64_t width =
                        grouped ? grouped_columns(shape.rows, ends.size()) : padded_columns(shape.rows);
                    Pair<uint8_t> codes(shape.rows * shape.columns), codes_t(shape.columns * width);
                    Pair<float> scales(shape.rows * num_tiles(shape.columns)),
                        scales_t(shape.columns * width / kTile);
                    compare(
                        [&](uint8_t* c, float* s, uint8_t* ct, float* st) {
                            cpu::quantize_tiles_both(x.matrix, groups, grouped, c, s, ct, st, threads());
                        },
                        codes, scales, codes_t, scales_t);
                    Pair<uint8_t> again(shape.columns * width);
                    compare(
                        [&](uint8_t* ct, float* st) {
                            cpu::quantize_tiles_transposed(x.matrix, groups, grouped, ct, st, threads());
                        },
                        again, scales_t);
                    EXPECT(again.current == codes_t.current);
                }
}

SANITIZED_CASE(quantize_blocks) {
    for (const Shape shape : kShapes)
        for (const FloatType type : kTypes)
            for (const bool power_of_2 : {false, true}) {
                const Floats w({2 * shape.rows, shape.columns}, type, 5);
                FloatMatrix one = w.matrix;
                one.rows = shape.rows;
                Pair<uint8_t> codes(2 * shape.rows * shape.columns);
                Pair<float> scales(2 * num_tiles(shape.rows) * num_tiles(shape.columns));
                compare(
                    [&](uint8_t* c, float* s) {
                        cpu::quantize_blocks(one, 2, shape.rows * w.stride, power_of_2, c, s, threads());
                    },
                    codes, scales);
            }
}

SANITIZED_CASE(dequantize) {
    for (const Shape shape : kShapes)
        for (const int64_t rows_per_scale : {int64_t{1}, kTile}) {
            const Codes x(shape, 9, shape.columns, rows_per_scale);
            const CodeMatrix matrix{x.codes.data(), x.scales.data(),          shape.rows, shape.columns,
                                    x.stride,       num_tiles(shape.columns), 1,          rows_per_scale};
            for (const FloatType type : kTypes) {
                Pair<unsigned char> out(shape.rows * shape.columns * bytes_of(type));
                compare([&](unsigned char* o) { cpu::dequantize(matrix, type, o, threads()); }, out);
            }
        }
}

SANITIZED_CASE(retile) {
    for (const Shape shape : kShapes)
        for (const bool grouped : {false, true}) {
            const Codes x(shape, 9, shape.columns, 1);
            const CodeMatrix matrix{x.codes.data(), x.scales.data(),          shape.rows, shape.columns,
                                    x.stride,       num_tiles(shape.columns), 1,          1};
            const Buffer<int32_t> ends = some_groups(shape.rows);
            const Groups groups{grouped ? ends.data() : nullptr, grouped ? ends.size() : 0};
            const int64_t width =
                grouped ? grouped_columns(shape.rows, ends.size()) : padded_columns(shape.rows);
            Pair<uint8_t> codes_t(shape.columns * width);
            Pair<float> scales_t(shape.columns * width / kTile);
            compare([&](uint8_t* c, float* s) { cpu::retile(matrix, groups, true, c, s, threads()); },
                    codes_t, scales_t);
        }
}

SANITIZED_CASE(e5m6) {
    for (const Shape shape : kShapes) {
        const int64_t row_bytes = e5m6_row_bytes(shape.columns);
        for (const FloatType type : kTypes) {
            const Floats x(shape, type, 1);
            Pair<uint8_t> packed(shape.rows * row_bytes);
            Pair<float> scales(shape.rows * num_tiles(shape.columns));
            compare([&](uint8_t* p, float* s) { cpu::quantize_e5m6(x.matrix, p, s, threads()); }, packed,
                    scales);
        }
        const Codes x(shape, 2, row_bytes, 1);
        const PackedMatrix matrix{x.codes.data(), x.scales.data(),          shape.rows, shape.columns,
                                  x.stride,       num_tiles(shape.columns), 1};
        for (const FloatType type : kTypes) {
            Pair<unsigned char> out(shape.rows * shape.columns * bytes_of(type));
            compare([&](unsigned char* o) { cpu::dequantize_e5m6(matrix, type, o, threads()); }, out);
        }
        const int64_t width = padded_columns(shape.rows);
        Pair<uint8_t> codes_t(shape.columns * width);
        Pair<float> scales_t(shape.columns * width / kTile);
        compare([&](uint8_t* c, float* s) { cpu::retile_e5m6(matrix, true, c, s, threads()); }, codes_t,
                scales_t);
    }
}

SANITIZED_CASE(transpose_bytes) {
    for (const Shape shape : kShapes) {
        const Codes x(shape, 4, shape.columns, 1);
        Pair<uint8_t> out(shape.rows * shape.columns);
        compare(
            [&](uint8_t* o) {
                cpu::transpose_bytes(x.codes.data(), shape.rows, shape.columns, x.stride, o, threads());
            },
            out);
        for (int64_t r = 0; r < shape.rows; ++r)
            for (int64_t c = 0; c < shape.columns; ++c)
                EXPECT(out.current[c * shape.rows + r] == x.codes[r * x.stride + c]);
    }
}

}  // namespace
