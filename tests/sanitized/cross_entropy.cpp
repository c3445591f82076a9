// Cross-entropy of ragged rows that lie apart, in buffers of the exact size, compared with the generic tier.
#include "cpu/cross_entropy.h"

#include <cmath>

#include "harness.h"

namespace {

using namespace dse;
using namespace dse::sanitized;

SANITIZED_CASE(cross_entropy) {
    for (const int64_t rows : {0, 1, 7, 40})
        for (const int64_t columns : {1, 15, 64, 100, 513}) {
            const int64_t stride = columns + 3, size = rows == 0 ? 0 : (rows - 1) * stride + columns;
            Buffer<float> current(size), generic(size), before(size);
            for (Buffer<float>* x : {&current, &generic, &before}) fill_normal(*x, 5);
            Buffer<int64_t> targets(rows), choices(rows), generic_choices(rows);
            for (int64_t r = 0; r < rows; ++r) targets[r] = r % 3 == 2 ? kIgnoredTarget : r % columns;
            Buffer<float> losses(rows), generic_losses(rows);
            const auto run = [&](Buffer<float>& x, Buffer<float>& loss, Buffer<int64_t>& choice) {
                cpu::cross_entropy({x.data(), FloatType::kFloat32, rows, columns, stride}, targets.data(),
                                   loss.data(), choice.data(), threads());
            };
            run(current, losses, choices);
            on_generic([&] { run(generic, generic_losses, generic_choices); });
            EXPECT(current == generic);
            EXPECT(losses == generic_losses);
            EXPECT(choices == generic_choices);
            for (int64_t r = 0; r < rows; ++r) {
                const float* x = before.data() + r * stride;
                double sum = 0;
                for (int64_t c = 0; c < columns; ++c) sum += std::exp(x[c]);
                const bool ignored = targets[r] == kIgnoredTarget;
                EXPECT(std::abs(losses[r] - (ignored ? 0 : std::log(sum) - x[targets[r]])) < 1e-5);
                EXPECT(choices[r] == std::max_element(x, x + columns) - x);
            }
        }
}

}  // namespace
