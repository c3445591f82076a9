// The kernels of the gemm family on ragged shapes and both layouts of B, codes and results in buffers of the
// exact size, compared with a plain loop in double precision.
#include "cpu/gemm.h"

#include <cmath>

#include "formats/bf16.h"
#include "formats/e4m3.h"
#include "harness.h"

namespace {

using namespace dse;
using namespace dse::sanitized;

struct Shape {
    int64_t m, n, k;
};
constexpr Shape kShapes[] = {{0, 3, 3},     {3, 0, 3},     {3, 3, 0},    {1, 1, 1},     {2, 130, 127},
                             {8, 17, 200},  {9, 10, 130},  {13, 64, 64}, {65, 63, 129}, {40, 100, 300},
                             {7, 200, 129}, {31, 16, 576}, {390, 33, 9}, {100, 140, 64}};

enum class Layout { kAlongK, kAcrossK };

// Codes without NaN and scales near 1. The last row ends where the buffer ends.
struct Operand {
    Operand(int64_t rows, int64_t k, int64_t rows_per_scale, Layout layout, uint32_t seed)
        : codes(rows * k), scales(ceil_div(rows, rows_per_scale) * num_tiles(k)) {
        fill_bits(codes, seed);
        for (int64_t i = 0; i < codes.size(); ++i)
            if ((codes[i] & 0x7f) == E4M3::kNaN) codes[i] ^= 1;
        fill_bits(scales, seed + 1);
        for (int64_t i = 0; i < scales.size(); ++i)
            scales[i] = 0.5f + static_cast<float>(float_bits(scales[i]) % 1024) / 1024.0f;
        const bool along = layout == Layout::kAlongK;
        view = {codes.data(),  along ? k : 1, along ? 1 : rows, scales.data(), num_tiles(k), 1,
                rows_per_scale};
    }
    Buffer<uint8_t> codes;
    Buffer<float> scales;
    GemmOperand view;
};

double scale(const GemmOperand& x, int64_t row, int64_t k) {
    return x.scales[row / x.rows_per_scale * x.scale_row_stride + k / kTile * x.scale_k_stride];
}
double code(const GemmOperand& x, int64_t row, int64_t k) {
    return E4M3::decode(x.codes[row * x.row_stride + k * x.k_stride]);
}

// One element in double precision, and the error that is allowed.
struct Exact {
    Exact(const GemmOperand& a, int64_t m, const GemmOperand& b, int64_t n, int64_t k) {
        double magnitude = 0;
        for (int64_t i = 0; i < k; ++i) {
            const double product = code(a, m, i) * code(b, n, i) * scale(a, m, i) * scale(b, n, i);
            value += product;
            magnitude += std::fabs(product);
        }
        bound = static_cast<double>(kTile + num_tiles(k) + 4) * 0x1p-24 * magnitude;
    }
    bool allows(float x) const { return std::fabs(x - value) <= bound; }
    double value = 0, bound = 0;
};

SANITIZED_CASE(gemm_of_every_shape) {
    for (const Shape& s : kShapes) {
        for (const Layout layout : {Layout::kAlongK, Layout::kAcrossK}) {
            for (const int64_t rows_per_scale : {int64_t{1}, kTile}) {
                const Operand a(s.m, s.k, 1, Layout::kAlongK, 1), b(s.n, s.k, rows_per_scale, layout, 2);
                Buffer<float> out(s.m * s.n), sum(s.m * s.n);
                Buffer<uint16_t> rounded(s.m * s.n);
                for (int64_t i = 0; i < sum.size(); ++i) sum[i] = 2.0f;
                const auto product = [&](void* data, GemmStore store) {
                    cpu::gemm({a.view, b.view, {data, s.n, store}, s.m, s.n, s.k}, threads());
                };
                product(out.data(), GemmStore::kFloat);
                product(rounded.data(), GemmStore::kBf16);
                product(sum.data(), GemmStore::kAccumulate);
                for (int64_t m = 0; m < s.m; ++m)
                    for (int64_t n = 0; n < s.n; ++n) {
                        const float x = out[m * s.n + n];
                        EXPECT(Exact(a.view, m, b.view, n, s.k).allows(x));
                        EXPECT(rounded[m * s.n + n] == float_to_bf16(x));
                        EXPECT(sum[m * s.n + n] == 2.0f + x);
                    }
            }
        }
    }
}

constexpr int32_t kEnds[][4] = {{0, 0, 0, 0}, {1, 1, 5, 9}, {0, 60, 64, 64}, {130, 130, 131, 300}};
constexpr int64_t kGroups = 4;

SANITIZED_CASE(grouped_gemm_of_uneven_loads) {
    const int64_t n = 70, k = 200, unused = 3;
    for (const auto& ends : kEnds) {
        for (const Layout layout : {Layout::kAlongK, Layout::kAcrossK}) {
            const int64_t rows = ends[kGroups - 1] + unused;
            const Operand a(rows, k, 1, Layout::kAlongK, 1);
            // Each group's scales start anew: one group's rows are a whole number of blocks here.
            const Operand b(kGroups * kTile, k, kTile, layout, 2);
            GemmOperand first = b.view;
            const int64_t group_codes = kTile * b.view.row_stride;
            Buffer<float> out(rows * n);
            cpu::grouped_gemm({a.view, first, {out.data(), n, GemmStore::kFloat}, rows, n, k}, kGroups, ends,
                              1, group_codes, b.view.scale_row_stride, threads());
            for (int64_t m = 0, e = 0; m < rows; ++m) {
                while (e < kGroups && m >= ends[e]) ++e;
                for (int64_t i = 0; i < n; ++i) {
                    const float x = out[m * n + i];
                    EXPECT(e < kGroups ? Exact(a.view, m, b.view, e * kTile + i, k).allows(x) : x == 0.0f);
                }
            }
        }
    }
}

SANITIZED_CASE(grouped_gemm_wgrad_of_uneven_loads) {
    const int64_t m = 21, n = 70;
    for (const auto& ends : kEnds) {
        int64_t columns = 0, before = 0;
        for (const int32_t end : ends) {
            columns = next_group_start(columns, end - before);
            before = end;
        }
        const Operand a(m, columns, 1, Layout::kAlongK, 1), b(n, columns, 1, Layout::kAlongK, 2);
        Buffer<float> out(kGroups * m * n);
        cpu::grouped_gemm_wgrad({a.view, b.view, {out.data(), n, GemmStore::kFloat}, m, n, columns}, kGroups,
                                ends, 1, m * n, threads());
        int64_t column = 0;
        before = 0;
        for (int64_t e = 0; e < kGroups; ++e) {
            const int64_t rows = ends[e] - before;
            GemmOperand ae = a.view, be = b.view;
            ae.codes += column;
            be.codes += column;
            ae.scales += column / kTile;
            be.scales += column / kTile;
            for (int64_t i = 0; i < m; ++i)
                for (int64_t j = 0; j < n; ++j)
                    EXPECT(Exact(ae, i, be, j, rows).allows(out[(e * m + i) * n + j]));
            column = next_group_start(column, rows);
            before = ends[e];
        }
    }
}

}  // namespace
