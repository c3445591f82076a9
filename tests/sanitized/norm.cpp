// Norms of ragged rows that lie apart, all kinds of numbers among them, in buffers of the exact size,
// compared with the generic tier.
#include "cpu/norm.h"

#include "harness.h"

namespace {

using namespace dse;
using namespace dse::sanitized;

struct Results {
    Results(int64_t rows, int64_t columns, int64_t size)
        : out(rows * columns * size),
          again(rows * columns * size),
          grad_x(rows * columns * size),
          rstd(rows),
          grad_weight(columns) {}
    bool operator==(const Results& other) const {
        return out == other.out && again == other.again && grad_x == other.grad_x && rstd == other.rstd &&
               grad_weight == other.grad_weight;
    }
    Buffer<unsigned char> out, again, grad_x;
    Buffer<float> rstd, grad_weight;
};

// A buffer of rows `stride` elements apart, the last one no longer than `columns`.
template <class T, class Fill>
Buffer<T> matrix(int64_t rows, int64_t columns, int64_t stride, const Fill& fill) {
    Buffer<T> x(rows == 0 ? 0 : (rows - 1) * stride + columns);
    fill(x);
    return x;
}

template <class T, class Fill>
void check(FloatType type, const Fill& fill) {
    for (const int64_t rows : {0, 1, 3, 64, 150})
        for (const int64_t columns : {1, 15, 64, 100, 200}) {
            const int64_t stride = columns + 5;
            Buffer<T> x = matrix<T>(rows, columns, stride, fill),
                      grad = matrix<T>(rows, columns, stride, fill);
            Buffer<float> weight(columns);
            fill_normal(weight, 3);
            const FloatMatrix x_rows{x.data(), type, rows, columns, stride},
                grad_rows{grad.data(), type, rows, columns, stride};
            const auto run = [&](Results& r) {
                cpu::rms_norm(x_rows, weight.data(), 1e-6f, r.out.data(), r.rstd.data(), threads());
                cpu::rms_norm_again(x_rows, weight.data(), r.rstd.data(), r.again.data(), threads());
                cpu::rms_norm_backward(grad_rows, x_rows, weight.data(), r.rstd.data(), r.grad_x.data(),
                                       r.grad_weight.data(), threads());
            };
            Results current(rows, columns, sizeof(T)), generic(rows, columns, sizeof(T));
            run(current);
            on_generic([&] { run(generic); });
            EXPECT(current == generic);
            EXPECT(current.out == current.again);
        }
}

SANITIZED_CASE(norm_of_floats) {
    check<float>(FloatType::kFloat32, [](Buffer<float>& x) { fill_normal(x, 1); });
}

SANITIZED_CASE(norm_of_bf16) {
    check<Bf16>(FloatType::kBfloat16, [](Buffer<Bf16>& x) {
        Buffer<float> values(x.size());
        fill_normal(values, 2);
        for (int64_t i = 0; i < x.size(); ++i) x[i].bits = float_to_bf16(values[i]);
    });
}

}  // namespace
