#include <cstring>
#include <type_traits>
#include <vector>

#include "cpu/cache.h"
#include "cpu/intrinsics.h"
#include "cpu/quantize.h"
#include "formats/bf16.h"
#include "formats/e4m3.h"
#include "formats/e5m6.h"
#include "formats/f16.h"
#include "formats/scale.h"
#include "formats/tiles.h"

namespace dse::cpu {
namespace {

// The rows of x that become the columns of one tile of the result; none in a tile that is all gap.
struct RowTile {
    int64_t row;
    int64_t rows;
};

// The row-wise results of quantize_tiles_both; null codes: not wanted.
struct RowResults {
    uint8_t* codes = nullptr;
    float* scales = nullptr;
};

// |code| as BF16 at the code's low seven bits, in two bytes. Filled here, in code for any x86-64, when the
// library loads.
struct Bf16Bytes {
    Bf16Bytes() {
        for (int c = 0; c < 128; ++c) {
            const uint32_t bits = float_bits(E4M3::decode(static_cast<uint8_t>(c)));
            low[c] = static_cast<uint8_t>(bits >> 16);
            high[c] = static_cast<uint8_t>(bits >> 24);
        }
    }
    alignas(64) uint8_t low[128];
    alignas(64) uint8_t high[128];
};
const Bf16Bytes kMagnitudes;

std::vector<RowTile> row_tiles(int64_t rows, const Groups& groups) {
    std::vector<RowTile> tiles;
    const auto cut = [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row += kTile)
            tiles.push_back({row, row + kTile < end ? kTile : end - row});
    };
    if (groups.ends == nullptr) {
        cut(0, rows);
        return tiles;
    }
    for (int64_t g = 0; g < groups.count; ++g) cut(g == 0 ? 0 : groups.ends[g - 1], groups.ends[g]);
    tiles.resize(grouped_columns(rows, groups.count) / kTile, RowTile{0, 0});
    return tiles;
}

}  // namespace
}  // namespace dse::cpu

// BF16 instructions flush subnormals and would give other bits.
#define DSE_BODY_WITHOUT_BF16
#define DSE_BODY "cpu/quantize_transposed.inc"
#include "cpu/foreach_isa.h"

namespace dse::cpu {

void quantize_tiles_transposed(const FloatMatrix& x, const Groups& groups, bool power_of_2, uint8_t* codes_t,
                               float* scales_t, const ParallelFor& parallel) {
    quantize_tiles_both(x, groups, power_of_2, nullptr, nullptr, codes_t, scales_t, parallel);
}

void quantize_tiles_both(const FloatMatrix& x, const Groups& groups, bool power_of_2, uint8_t* codes,
                         float* scales, uint8_t* codes_t, float* scales_t, const ParallelFor& parallel) {
    const std::vector<RowTile> tiles = row_tiles(x.rows, groups);
    const auto count = static_cast<int64_t>(tiles.size());
    DSE_SELECT(quantize_transposed)(x, tiles.data(), count, power_of_2, codes_t, scales_t,
                                    RowResults{codes, scales}, parallel);
    if (codes == nullptr || groups.ends == nullptr) return;
    const int64_t used = groups.ends[groups.count - 1], scales_a_row = num_tiles(x.columns);
    std::memset(codes + used * x.columns, 0, (x.rows - used) * x.columns);
    for (int64_t i = used * scales_a_row; i < x.rows * scales_a_row; ++i) scales[i] = 1.0f;
}

void retile(const CodeMatrix& x, const Groups& groups, bool power_of_2, uint8_t* codes_t, float* scales_t,
            const ParallelFor& parallel) {
    const std::vector<RowTile> tiles = row_tiles(x.rows, groups);
    const auto count = static_cast<int64_t>(tiles.size());
    DSE_SELECT(retile)(x, tiles.data(), count, power_of_2, codes_t, scales_t, parallel);
}

void retile_e5m6(const PackedMatrix& x, bool power_of_2, uint8_t* codes_t, float* scales_t,
                 const ParallelFor& parallel) {
    const std::vector<RowTile> tiles = row_tiles(x.rows, {nullptr, 0});
    const auto count = static_cast<int64_t>(tiles.size());
    DSE_SELECT(retile_e5m6)(x, tiles.data(), count, power_of_2, codes_t, scales_t, parallel);
}

void transpose_bytes(const uint8_t* x, int64_t rows, int64_t columns, int64_t row_stride, uint8_t* out,
                     const ParallelFor& parallel) {
    DSE_SELECT(transpose_bytes)(x, rows, columns, row_stride, out, parallel);
}

}  // namespace dse::cpu
