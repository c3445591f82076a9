// Prints what csrc/cuda/gemm_plan.h decides, for tests/ops/test_gemm_plan.py.
//
//   gemm_plan plan KIND M N K GROUPS SMS [TILE]   the tile's name, its rows and columns, row tiles, column
//   tiles, CTAs gemm_plan order ROWS COLUMNS                  row and column of each tile, in order
#include "cuda/gemm_plan.h"

#include <cstdlib>

using namespace dse;
using namespace dse::cuda;

int main(int argc, char** argv) {
    const auto number = [&](int i) { return std::atoll(argv[i]); };
    if (argc == 4) {
        const int64_t rows = number(2), columns = number(3);
        for (int64_t i = 0; i < rows * columns; ++i) {
            const TilePosition at = tile_position(i, rows, columns);
            std::printf("%lld %lld\n", static_cast<long long>(at.row), static_cast<long long>(at.column));
        }
        return 0;
    }
    const GemmShape shape{number(3), number(4), number(5), number(6), static_cast<GemmGroups>(number(2))};
    try {
        const GemmPlan plan = plan_gemm(shape, static_cast<int>(number(7)), argc > 8 ? argv[8] : nullptr);
        const GemmTile& tile = kGemmTile[plan.tile];
        std::printf("%s %d %d %lld %lld %lld\n", tile.name, tile.m, tile.n,
                    static_cast<long long>(plan.row_tiles), static_cast<long long>(plan.column_tiles),
                    static_cast<long long>(plan.ctas));
    } catch (const std::invalid_argument& error) {
        std::printf("%s\n", error.what());
    }
}
