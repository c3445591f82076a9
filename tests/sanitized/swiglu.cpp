// The kernels of the swiglu family on ragged shapes, strides and all kinds of numbers, in buffers of the
// exact size, compared bit for bit with the generic tier; and a row's sum in its documented order.
#include "cpu/swiglu.h"

#include "formats/bf16.h"
#include "formats/exp.h"
#include "formats/tiles.h"
#include "harness.h"

namespace {

using namespace dse;
using namespace dse::sanitized;

struct Shape {
    int64_t rows, width;
};
constexpr Shape kShapes[] = {{0, 0},  {0, 7},    {5, 0},     {1, 1},    {3, 31},  {40, 33},
                             {3, 64}, {33, 128}, {130, 200}, {20, 256}, {3, 2240}};
constexpr FloatType kTypes[] = {FloatType::kFloat32, FloatType::kBfloat16, FloatType::kFloat16};

int64_t bytes_of(FloatType type) { return type == FloatType::kFloat32 ? 4 : 2; }

// A matrix whose last row ends where its buffer ends. Every third row holds any bits; NaN among them are
// replaced, since which NaN an FP32 result is, is not promised.
struct Floats {
    Floats(int64_t rows, int64_t columns, FloatType type, int64_t gap, uint32_t seed)
        : stride(columns + gap),
          buffer(rows == 0 ? 0 : ((rows - 1) * stride + columns) * bytes_of(type)),
          matrix{buffer.data(), type, rows, columns, stride} {
        fill_bits(buffer, seed + static_cast<uint32_t>(rows * 1000 + columns));
        const int64_t size = bytes_of(type);
        for (int64_t i = 0; i < buffer.size() / size; ++i) {
            unsigned char* top = buffer.data() + i * size + size - 1;
            if (i / stride % 3 != 0) *top = static_cast<unsigned char>((*top & 0x80) | 0x3f);
            if ((*top & 0x7c) == 0x7c) *top ^= 0x40;
        }
    }
    int64_t stride;
    Buffer<unsigned char> buffer;
    FloatMatrix matrix;
};

struct Weights {
    explicit Weights(int64_t rows) : data(rows == 0 ? 0 : 3 * (rows - 1) + 1) { fill_normal(data, 7); }
    RowWeights every_third() const { return {data.data(), 3}; }
    Buffer<float> data;
};

// One result on the current tier, one on the generic tier, each first filled with a pattern of its own.
template <class T>
struct Pair {
    explicit Pair(int64_t size) : current(size, 0xa5), generic(size, 0x5a) {}
    Buffer<T> current, generic;
};

// Equal bits, any NaN being equal to any other.
template <class T>
bool same(const Buffer<T>& a, const Buffer<T>& b) {
    return a == b;
}
bool same(const Buffer<float>& a, const Buffer<float>& b) {
    for (int64_t i = 0; i < a.size(); ++i)
        if (float_bits(a[i]) != float_bits(b[i]) && (a[i] == a[i] || b[i] == b[i])) return false;
    return true;
}

template <class Call, class... Results>
void compare(const Call& call, Pair<Results>&... results) {
    on_generic([&] { call(results.generic.data()...); });
    call(results.current.data()...);
    EXPECT((same(results.current, results.generic) && ...));
}

SANITIZED_CASE(swiglu) {
    for (const Shape shape : kShapes)
        for (const FloatType type : kTypes)
            for (const int64_t gap : {0, 3}) {
                const Floats x(shape.rows, 2 * shape.width, type, gap, 1);
                const Weights weights(shape.rows);
                const int64_t size = shape.rows * shape.width;
                const auto run = [&](void* out) {
                    cpu::swiglu(x.matrix, weights.every_third(), out, threads());
                };
                Pair<float> wide(type == FloatType::kFloat32 ? size : 0);
                Pair<uint16_t> narrow(type == FloatType::kFloat32 ? 0 : size);
                if (type == FloatType::kFloat32)
                    compare(run, wide);
                else
                    compare(run, narrow);
            }
}

SANITIZED_CASE(swiglu_quantize) {
    for (const Shape shape : kShapes)
        for (const FloatType type : kTypes)
            for (const int64_t gap : {0, 3})
                for (const bool cache : {false, true}) {
                    const Floats x(shape.rows, 2 * shape.width, type, gap, 2);
                    const Weights weights(shape.rows);
                    const int64_t cached = cache ? shape.rows : 0;
                    Pair<uint8_t> codes(shape.rows * shape.width), cache_codes(cached * 2 * shape.width);
                    Pair<float> scales(shape.rows * num_tiles(shape.width)),
                        cache_scales(cached * num_tiles(2 * shape.width));
                    compare(
                        [&](uint8_t* c, float* s, uint8_t* cc, float* cs) {
                            cpu::swiglu_quantize(x.matrix, weights.every_third(), cache, {c, s},
                                                 cache ? TileResults{cc, cs} : TileResults{}, threads());
                        },
                        codes, scales, cache_codes, cache_scales);
                }
}

SANITIZED_CASE(swiglu_gradient) {
    for (const Shape shape : kShapes)
        for (const FloatType type : kTypes)
            for (const bool weighted : {false, true}) {
                const Floats x(shape.rows, 2 * shape.width, type, 3, 3);
                const Floats grad(shape.rows, shape.width, type, 5, 4);
                const Weights weights(shape.rows);
                const int64_t size = 2 * shape.rows * shape.width;
                const auto run = [&](void* out, float* sums) {
                    cpu::swiglu_gradient(grad.matrix, x.matrix,
                                         weighted ? weights.every_third() : RowWeights{}, out,
                                         weighted ? sums : nullptr, threads());
                };
                Pair<float> wide(type == FloatType::kFloat32 ? size : 0);
                Pair<uint16_t> narrow(type == FloatType::kFloat32 ? 0 : size);
                Pair<float> sums(weighted ? shape.rows : 0);
                if (type == FloatType::kFloat32)
                    compare(run, wide, sums);
                else
                    compare(run, narrow, sums);
            }
}

SANITIZED_CASE(swiglu_backward) {
    for (const Shape shape : kShapes)
        for (const FloatType type : kTypes)
            for (const bool weighted : {false, true}) {
                const int64_t columns = 2 * shape.width, stride = columns + 9;
                Buffer<uint8_t> codes(shape.rows == 0 ? 0 : (shape.rows - 1) * stride + columns);
                Buffer<float> scales(shape.rows * num_tiles(columns));
                fill_bits(codes, 5);
                fill_normal(scales, 6);
                const CodeMatrix x{codes.data(), scales.data(),      shape.rows, columns,
                                   stride,       num_tiles(columns), 1,          1};
                const Floats grad(shape.rows, shape.width, type, 5, 4);
                const Weights weights(shape.rows);
                Pair<uint16_t> grad_gate_up(shape.rows * columns), output(shape.rows * shape.width);
                Pair<float> sums(weighted ? shape.rows : 0);
                compare(
                    [&](uint16_t* g, float* s, uint16_t* o) {
                        cpu::swiglu_backward(grad.matrix, x, weighted ? weights.every_third() : RowWeights{},
                                             g, weighted ? s : nullptr, o, threads());
                    },
                    grad_gate_up, sums, output);
            }
}

SANITIZED_CASE(swiglu_row_sum_in_its_documented_order) {
    const int64_t width = 77;
    Buffer<float> gate_up(2 * width), grad(width), grad_gate_up(2 * width);
    fill_normal(gate_up, 1);
    fill_normal(grad, 2);
    float lanes[16] = {}, sum = 0;
    for (int64_t i = 0; i < width; ++i) {
        const float product = gate_up[i] * sigmoid(gate_up[i]) * gate_up[width + i];
        lanes[i % 16] = multiply_add(grad[i], product, lanes[i % 16]);
    }
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    cpu::swiglu_gradient({grad.data(), FloatType::kFloat32, 1, width, width},
                         {gate_up.data(), FloatType::kFloat32, 1, 2 * width, 2 * width}, {},
                         grad_gate_up.data(), &sum, threads());
    EXPECT(sum == lanes[0]);
}

}  // namespace
