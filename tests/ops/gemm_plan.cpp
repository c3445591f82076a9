// Prints what csrc/cuda/gemm_plan.h and csrc/cuda/hopper/gemm_plan.h decide, for tests/ops/test_gemm_plan.py.
//
//   gemm_plan portable|hopper KIND M N K GROUPS SMS
//       the tile's name, its rows and columns, row tiles, column tiles, tiles, modelled cycles
//   gemm_plan order ROWS COLUMNS
//       row and column of each tile, in order
//   gemm_plan forced
//       the tile that DSE_GEMM_TILE names
#include "cuda/gemm_plan.h"

#include <cstdlib>

#include "cuda/hopper/gemm_plan.h"

using namespace dse;
using namespace dse::cuda;

namespace {

long long number(int64_t x) { return static_cast<long long>(x); }

template <class Tile, int kCount, class Cycles>
void print(const GemmShape& shape, const Tile (&tiles)[kCount], const Cycles& cycles) {
    const GemmPlan plan = choose_plan(shape, tiles, cycles, nullptr);
    const Tile& tile = tiles[plan.tile];
    std::printf("%s %d %d %lld %lld %lld %.0f\n", tile.name, tile.m, tile.n, number(plan.row_tiles),
                number(plan.column_tiles), number(plan.tiles), cycles(plan.tile));
}

}  // namespace

int main(int, char** argv) {
    const auto argument = [&](int i) { return std::atoll(argv[i]); };
    const std::string wanted = argv[1];
    if (wanted == "order") {
        const int64_t rows = argument(2), columns = argument(3);
        for (int64_t i = 0; i < rows * columns; ++i) {
            const auto at = tile_position(i, rows, columns);
            std::printf("%lld %lld\n", number(at.row), number(at.column));
        }
        return 0;
    }
    if (wanted == "forced") {
        try {
            std::printf("%s\n", forced_tile());
        } catch (const std::invalid_argument& error) {
            std::printf("%s\n", error.what());
        }
        return 0;
    }
    const GemmShape shape{argument(3), argument(4), argument(5), argument(6),
                          static_cast<GemmGroups>(argument(2))};
    const int sms = static_cast<int>(argument(7));
    if (wanted == "hopper")
        print(shape, hopper::kShapes,
              [&](int i) { return hopper::modelled_cycles(shape, static_cast<hopper::TileIndex>(i), sms); });
    else
        print(shape, kGemmTile,
              [&](int i) { return modelled_cycles(shape, static_cast<GemmTileIndex>(i), sms); });
}
