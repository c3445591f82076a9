"""The CUDA gemm's choice of tiles, a pure function of shape and device: tested without either."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DENSE, GROUPED, WGRAD = 0, 1, 2
A100, H100 = 108, 132  # SMs


class Planner:
    def __init__(self, program: Path) -> None:
        self.program = program

    def lines(self, *arguments: object) -> list[list[str]]:
        words = [str(self.program), *map(str, arguments)]
        output = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        return [line.split() for line in output.splitlines()]

    def plan(
        self, kind: int, m: int, n: int, k: int, groups: int = 0, sms: int = A100, path: str = "portable"
    ) -> tuple[str, list[int]]:
        name, *numbers = self.lines(path, kind, m, n, k, groups, sms)[0]
        return name, [int(x) for x in numbers]


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Planner:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None or not (ROOT / "csrc").exists():
        pytest.skip("needs a checkout and a C++ compiler")
    program = tmp_path_factory.mktemp("plan") / "gemm_plan"
    source = ROOT / "tests/ops/gemm_plan.cpp"
    subprocess.run([compiler, "-std=c++20", f"-I{ROOT / 'csrc'}", source, "-o", program], check=True)
    return Planner(program)


@pytest.mark.parametrize("sms", [A100, H100])
@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        ((1, 7168, 2048), "16x64"),
        ((8, 2112, 7168), "16x64"),
        ((4096, 2112, 7168), "128x128"),
        ((4096, 7168, 16384), "128x128"),
        ((4096, 24576, 1536), "128x128"),
    ],
    ids=str,
)
def test_dense_products_of_deepseek_v3(
    planner: Planner, shape: tuple[int, int, int], tile: str, sms: int
) -> None:
    assert planner.plan(DENSE, *shape, sms=sms)[0] == tile


def test_experts_with_few_rows_take_small_tiles(planner: Planner) -> None:
    assert planner.plan(GROUPED, 64, 4096, 7168, groups=256)[0] == "16x64"
    assert planner.plan(GROUPED, 32768, 4096, 7168, groups=8)[0] == "128x128"
    assert planner.plan(WGRAD, 4096, 7168, 32768, groups=8)[0] == "128x128"


def test_a_small_result_takes_tiles_for_every_sm(planner: Planner) -> None:
    """One tile of 128x128 would leave 107 of 108 SMs idle; on one SM it is the fastest."""
    assert planner.plan(DENSE, 128, 128, 4096)[0] != "128x128"
    assert planner.plan(DENSE, 128, 128, 4096, sms=1)[0] == "128x128"


@pytest.mark.parametrize("m", [1, 16, 17, 64, 129, 1000])
@pytest.mark.parametrize("n", [1, 63, 576])
@pytest.mark.parametrize("groups", [1, 7])
@pytest.mark.parametrize("path", ["portable", "hopper"])
def test_tiles_cover_every_division_of_the_rows(
    planner: Planner, m: int, n: int, groups: int, path: str
) -> None:
    _, (tile_m, tile_n, rows, columns, ctas, _) = planner.plan(GROUPED, m, n, 256, groups=groups, path=path)
    # The worst division: a row in each group but one, and the rest of them in that and in no group.
    single = min(groups, m)
    most = single + -(-(m - single) // tile_m)
    assert rows >= most
    assert rows <= -(-m // tile_m) + groups
    assert columns == -(-n // tile_n)
    assert ctas == rows * columns
    _, (tile_m, tile_n, rows, columns, ctas, _) = planner.plan(WGRAD, m, n, 256, groups=groups, path=path)
    assert (rows, columns) == (-(-m // tile_m), -(-n // tile_n))
    assert ctas == rows * columns * groups


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 20])
@pytest.mark.parametrize("columns", [1, 3, 10])
def test_the_order_visits_every_tile_once(planner: Planner, rows: int, columns: int) -> None:
    visited = [(int(r), int(c)) for r, c in planner.lines("order", rows, columns)]
    assert sorted(visited) == [(r, c) for r in range(rows) for c in range(columns)]
    assert all(r < 8 for r, _ in visited[: min(8, rows) * columns])


@pytest.mark.parametrize("tile", ["16x64", "64x24", "64x48", "64x64", "128x128", "256x96", "256x128"])
def test_a_tile_can_be_forced(planner: Planner, tile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSE_GEMM_TILE", tile)
    assert planner.lines("forced") == [[tile]]


def test_an_unknown_tile_is_refused(planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSE_GEMM_TILE", "32x32")
    assert " ".join(planner.lines("forced")[0]) == (
        "gemm: DSE_GEMM_TILE must be 16x64, 64x24, 64x48, 64x64, 128x128, 256x96 or 256x128, got 32x32; "
        "unset it to let the shape decide"
    )


@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        ((1, 7168, 2048), "64x64"),
        ((64, 2112, 7168), "64x24"),
        ((128, 2112, 7168), "64x48"),
        ((128, 4096, 7168), "64x64"),
        ((4096, 2112, 7168), "256x96"),
        ((4096, 24576, 1536), "256x128"),
        ((4096, 32768, 512), "256x128"),
        ((4096, 7168, 16384), "256x128"),
        ((4096, 4096, 7168), "256x128"),
        ((128, 7168, 2048), "64x64"),
    ],
    ids=str,
)
def test_dense_products_of_deepseek_v3_on_hopper(
    planner: Planner, shape: tuple[int, int, int], tile: str
) -> None:
    assert planner.plan(DENSE, *shape, sms=H100, path="hopper")[0] == tile


def test_grouped_products_on_hopper(planner: Planner) -> None:
    assert planner.plan(GROUPED, 64, 4096, 7168, groups=32, sms=H100, path="hopper")[0] == "64x64"
    assert planner.plan(GROUPED, 32768, 4096, 7168, groups=8, sms=H100, path="hopper")[0] == "256x128"
    assert planner.plan(WGRAD, 4096, 7168, 32768, groups=8, sms=H100, path="hopper")[0] == "256x128"
    assert planner.plan(WGRAD, 64, 64, 4096, groups=8, sms=H100, path="hopper")[0] == "128x128"


def test_the_table_of_the_model_is_current(planner: Planner) -> None:
    """docs/performance.md: M x N x K, tile, tiles, clocks."""
    page = (ROOT / "docs/performance.md").read_text()
    rows = re.findall(
        r"^\| (\d+) x (\d+) x (\d+) \| (\d+x\d+) \| (\d+) \| (\d+) \| (\d+)% \| (\d+)% \|", page, re.M
    )
    assert len(rows) == 18
    enough = 0
    for m, n, k, tile, tiles, clocks, of_peak, of_memory in rows:
        name, numbers = planner.plan(DENSE, int(m), int(n), int(k), sms=H100, path="hopper")
        assert (name, *numbers[-2:]) == (tile, int(tiles), int(clocks))
        m, n, k, clocks = (int(x) for x in (m, n, k, clocks))
        peak, memory = m * n * k / 4096, ((m + n) * k + 2 * m * n) / 14.5
        assert [f"{100 * x / H100 / clocks:.0f}" for x in (peak, memory)] == [of_peak, of_memory]
        enough += max(peak, memory) / H100 / clocks >= 0.7
    assert enough == 18
