// Attention on ragged heads that lie apart in buffers of the exact size, with and without documents, compared
// with the definition in double precision.
#include "cpu/attention.h"

#include <cmath>

#include "harness.h"

namespace {

using namespace dse;
using namespace dse::sanitized;

constexpr int64_t kSequences = 2, kHeads = 2;
constexpr float kScale = 0.25f;

// [sequences, tokens, heads, columns], the rows of a head `columns * heads` apart; as T.
template <class T>
struct Heads {
    Heads(int64_t tokens, int64_t columns, uint32_t seed)
        : columns(columns), buffer(kSequences * tokens * kHeads * columns) {
        Buffer<float> values(buffer.size());
        fill_normal(values, seed);
        for (int64_t i = 0; i < buffer.size(); ++i) set(buffer[i], values[i]);
        rows = {buffer.data(), tokens * kHeads * columns, columns, kHeads * columns};
    }
    static void set(float& to, float x) { to = x; }
    static void set(Bf16& to, float x) { to.bits = float_to_bf16(x); }
    double at(int64_t sequence, int64_t head, int64_t token, int64_t column) const {
        const T& x = buffer[sequence * rows.sequence_stride + head * rows.head_stride +
                            token * rows.row_stride + column];
        return to_float(x);
    }
    int64_t columns;
    Buffer<T> buffer;
    HeadRows rows;
};

template <class T>
void check(FloatType type, int64_t tokens, int64_t width, int64_t value_width, bool documents,
           double tolerance) {
    Heads<T> q(tokens, width, 1), k(tokens, width, 2), v(tokens, value_width, 3),
        grad(tokens, value_width, 4);
    Heads<T> out(tokens, value_width, 0), grad_q(tokens, width, 0), grad_k(tokens, width, 0),
        grad_v(tokens, value_width, 0);
    Buffer<float> sums(kSequences * kHeads * tokens);
    Buffer<int32_t> starts(kSequences * tokens);
    for (int64_t i = 0; i < starts.size(); ++i)
        starts[i] = documents ? static_cast<int32_t>(i % tokens / 23 * 23) : 0;
    const cpu::AttentionShape shape{type,  kSequences,  kHeads, tokens,
                                    width, value_width, kScale, documents ? starts.data() : nullptr};
    cpu::attention(shape, q.rows, k.rows, v.rows, out.rows, sums.data(), threads());
    cpu::attention_backward(shape, grad.rows, q.rows, k.rows, v.rows, out.rows, sums.data(),
                            {grad_q.rows, grad_k.rows, grad_v.rows}, threads());

    for (int64_t s = 0; s < kSequences; ++s)
        for (int64_t h = 0; h < kHeads; ++h) {
            std::vector<double> wanted_k(tokens * width), wanted_v(tokens * value_width);
            for (int64_t t = 0; t < tokens; ++t) {
                std::vector<double> p(t + 1), wanted_q(width);
                double total = 0;
                for (int64_t j = starts[s * tokens + t]; j <= t; ++j) {
                    double x = 0;
                    for (int64_t c = 0; c < width; ++c) x += q.at(s, h, t, c) * k.at(s, h, j, c);
                    total += p[j] = std::exp(kScale * x);
                }
                double delta = 0;
                for (int64_t c = 0; c < value_width; ++c) {
                    double wanted = 0;
                    for (int64_t j = 0; j <= t; ++j) wanted += p[j] / total * v.at(s, h, j, c);
                    EXPECT(std::abs(out.at(s, h, t, c) - wanted) < tolerance);
                    delta += wanted * grad.at(s, h, t, c);
                }
                EXPECT(std::abs(sums[(s * kHeads + h) * tokens + t] - std::log(total)) < tolerance);
                for (int64_t j = 0; j <= t; ++j) {
                    double slope = 0;
                    for (int64_t c = 0; c < value_width; ++c) {
                        slope += grad.at(s, h, t, c) * v.at(s, h, j, c);
                        wanted_v[j * value_width + c] += p[j] / total * grad.at(s, h, t, c);
                    }
                    const double change = p[j] / total * (slope - delta) * kScale;
                    for (int64_t c = 0; c < width; ++c) {
                        wanted_q[c] += change * k.at(s, h, j, c);
                        wanted_k[j * width + c] += change * q.at(s, h, t, c);
                    }
                }
                for (int64_t c = 0; c < width; ++c)
                    EXPECT(std::abs(grad_q.at(s, h, t, c) - wanted_q[c]) < tolerance);
            }
            for (int64_t t = 0; t < tokens; ++t) {
                for (int64_t c = 0; c < width; ++c)
                    EXPECT(std::abs(grad_k.at(s, h, t, c) - wanted_k[t * width + c]) < tolerance);
                for (int64_t c = 0; c < value_width; ++c)
                    EXPECT(std::abs(grad_v.at(s, h, t, c) - wanted_v[t * value_width + c]) < tolerance);
            }
        }
}

SANITIZED_CASE(attention_in_fp32) {
    for (const bool documents : {false, true}) {
        check<float>(FloatType::kFloat32, 1, 3, 5, documents, 1e-5);
        check<float>(FloatType::kFloat32, 64, 16, 16, documents, 1e-4);
        check<float>(FloatType::kFloat32, 133, 24, 9, documents, 1e-4);
    }
}

SANITIZED_CASE(attention_in_bf16) {
    for (const bool documents : {false, true}) {
        check<Bf16>(FloatType::kBfloat16, 65, 7, 33, documents, 0.1);
        check<Bf16>(FloatType::kBfloat16, 128, 96, 64, documents, 0.1);
    }
}

}  // namespace
