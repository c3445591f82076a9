"""What the model of the Hopper gemm in docs/performance.md rests on, counted on the simulator: for each tile
what 128 codes of depth and a tile's end take; and what an up-projection and SwiGLU move.

docs/generate_kernels.py writes the tables, tests/ops/test_kernel_table.py counts again.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from kernel_cases import HOPPER_TILES, Case
from kernel_counts import SECTOR, launches_of, table
from torch import Tensor

SCHEDULERS = 4  # of an SM
Kernels = dict[str, Callable[..., Any]]
Operands = tuple[Tensor, Tensor, Tensor, Tensor]


def operands(m: int, n: int, k: int, b_tiles: bool = False) -> Operands:
    import backends

    from deepseek_ext import ops

    generator = torch.Generator().manual_seed(0)
    with backends.on_cpu():
        a, b = torch.randn(m, k, generator=generator), torch.randn(n, k, generator=generator)
        return *ops.quantize_tiles(a), *(ops.quantize_tiles if b_tiles else ops.quantize_blocks)(b)


def counted(kernels: Kernels, tile: str, k: int, tiles: int = 1, b_tiles: bool = False) -> dict[str, Any]:
    """Counters, a CTA of a cluster that computes `tiles` after another."""
    import backends

    m, n = (int(x) for x in tile.split("x"))
    rows, columns = HOPPER_TILES[tile]
    case = Case("gemm", *operands(m * rows * tiles, n * columns, k, b_tiles), tile=tile, gemm="hopper")
    backends.simulator_option("multiprocessors", rows * columns)
    try:
        (launch,), _ = launches_of(case, kernels["gemm"], ctypes.CDLL("libptxsim.so"))
    finally:
        backends.simulator_option("multiprocessors", 132)
    assert launch["ctas"] == rows * columns
    return launch


def hopper_table(kernels: Kernels) -> str:
    """Each cell with scales of B in blocks, and in tiles, where they differ."""

    def row(tile: str) -> list[str]:
        m, n = (int(x) for x in tile.split("x"))
        rows, columns = HOPPER_TILES[tile]
        cells = []
        for b_tiles in (False, True):
            short, long = (counted(kernels, tile, k, b_tiles=b_tiles) for k in (512, 1024))
            two = counted(kernels, tile, 512, tiles=2, b_tiles=b_tiles)
            blocks, ctas = 4, rows * columns
            issued = [x["warp_instructions"] / ctas / SCHEDULERS for x in (short, long, two)]

            def passes(kind: str, launch: dict[str, Any]) -> float:
                return sum(launch[x][kind] for x in ("shared_load", "shared_store"))

            wavefronts, least = (
                (passes(kind, long) - passes(kind, short)) / ctas / blocks for kind in ("wavefronts", "ideal")
            )
            of_block = (issued[1] - issued[0]) / blocks
            cells.append(
                (
                    f"{of_block:.0f}",
                    f"{issued[2] - issued[0] - blocks * of_block:.0f}",
                    f"{wavefronts:.0f} ({least:.0f})",
                    f"{(long['bulk_load_bytes'] - short['bulk_load_bytes']) / ctas / blocks:,.0f}",
                )
            )
        joined = [x if x == y else f"{x}, {y}" for x, y in zip(*cells, strict=True)]
        return [f"{tile}, {rows} x {columns}", *joined, f"{m * n * 128 // 4096:,}"]

    head = [
        "tile, CTAs of a cluster",
        "warp instructions a scheduler, 128 codes of depth",
        "a tile's end",
        "shared memory, wavefronts (least)",
        "bytes from L2",
        "clocks of tensor core",
    ]
    return table(head, [row(tile) for tile in HOPPER_TILES])


ROWS, HIDDEN, WIDTH = 256, 512, 1024  # of the up-projection: [ROWS, WIDTH] to [ROWS, 2 * HIDDEN]


def fusion_table(kernels: Kernels) -> str:
    """Bytes that the two launches of an up-projection with its activation load and store."""
    library = ctypes.CDLL("libptxsim.so")
    gate_up = torch.randn(ROWS, 2 * HIDDEN, generator=torch.Generator().manual_seed(0)).bfloat16()
    product = operands(ROWS, 2 * HIDDEN, WIDTH)
    made = [
        Case("gemm", *product, tile="256x128", gemm="hopper", note="the up-projection"),
        Case("swiglu_quantize", gate_up, note="after it"),
        Case("swiglu_quantize", gate_up, note="after it, with its cache", cache=True),
    ]

    def row(case: Case) -> list[str]:
        launches, _ = launches_of(case, kernels[case.operator], library)
        loaded = sum(x["global_load"]["sectors"] * SECTOR + x["bulk_load_bytes"] for x in launches)
        stored = sum(x["global_store"]["sectors"] * SECTOR + x["bulk_store_bytes"] for x in launches)
        issued = sum(x["warp_instructions"] for x in launches)
        each = issued * 32 / (ROWS * HIDDEN)
        return [case.name(), f"{loaded:,}", f"{stored:,}", f"{issued:,}", f"{each:.0f}"]

    head = ["launch", "bytes loaded", "bytes stored", "warp instructions", "lanes' a hidden channel and row"]
    return table(head, map(row, made))
