"""Writes the tables of CUDA kernels in docs/performance.md: `make docs-kernels`. Needs nvcc, no GPU.

The first table is what ptxas allots (tests/cubin compares it with a new compilation), the second what a
launch of each operator does on the simulator: requests to memory, bank conflicts, instructions and bytes.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/cubin")]

import ptxas  # noqa: E402  found by the line above
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

PAGE = ROOT / "docs/performance.md"
SECTOR = 32  # bytes
GEMM_TILES = ("16x64", "64x64", "128x128")  # in the order of csrc/cuda/gemm_plan.h


def marker(name: str, end: bool = False) -> str:
    return f"<!-- {'end of ' if end else ''}{name}: docs/generate_kernels.py -->"


def section(page: str, name: str) -> str:
    """What stands between the two markers of a table."""
    return page.split(marker(name), 1)[1].split(marker(name, end=True), 1)[0].strip()


def with_section(page: str, name: str, text: str) -> str:
    before, rest = page.split(marker(name), 1)
    return (
        f"{before}{marker(name)}\n{text}\n{marker(name, end=True)}{rest.split(marker(name, end=True), 1)[1]}"
    )


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def row_name(kernel: ptxas.Kernel) -> str:
    """The row of a kernel: all instantiations of a template share one, except the gemm's tiles."""
    tile = re.match(r"gemm_kernel<Tile<(\d)>", kernel.name)
    return f"gemm_kernel, tile {GEMM_TILES[int(tile[1])]}" if tile else kernel.name.partition("<")[0]


def compiled_table(kernels: list[ptxas.Kernel]) -> str:
    """The most registers a thread and static shared memory a block that any instantiation of a kernel has."""
    rows: dict[tuple[str, str], list[ptxas.Kernel]] = {}
    for kernel in kernels:
        rows.setdefault((kernel.file, row_name(kernel)), []).append(kernel)
    lines = [
        [
            f"`{file}`",
            f"`{name}`",
            str(len({k.name for k in same})),
            *(str(max(k.registers for k in same if k.architecture == a)) for a in ptxas.ARCHITECTURES),
            str(max(k.shared for k in same)),
        ]
        for (file, name), same in sorted(rows.items())
    ]
    registers = [f"registers, {a}" for a in ptxas.ARCHITECTURES]
    head = ["file", "kernel", "instantiations", *registers, "static shared bytes"]
    return f"nvcc {ptxas.version()}; no kernel spills or uses local memory.\n\n{table(head, lines)}"


class Case:
    """One call of an operator on the simulator, with arguments that the CPU made."""

    def __init__(
        self, operator: str, *arguments: Any, note: str = "", tile: str = "", written: Iterable[Tensor] = ()
    ) -> None:
        self.operator, self.arguments, self.note, self.tile = operator, arguments, note, tile
        self.written = list(written)  # arguments that are written as well as read

    def name(self) -> str:
        return f"`{self.operator}`" + (f" {self.note}" if self.note else "")

    def tensors(self) -> list[Tensor]:
        return [x for x in self.arguments if isinstance(x, Tensor)]


def cases() -> list[Case]:
    """Calls as a layer makes them, 256 rows of 1024 unless said otherwise."""
    from deepseek_ext import ops

    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).bfloat16()

    x, weight = normal(256, 1024), normal(512, 1024)
    codes, scales = ops.quantize_tiles(x)
    w_codes, w_scales = ops.quantize_blocks(weight.float())
    packed, packed_scales = ops.quantize_e5m6(x)
    offs = torch.tensor([100, 100, 190, 256], dtype=torch.int32)
    experts, expert_scales = ops.quantize_blocks(normal(4, 256, 1024).float())
    g_t, g_scales_t = ops.quantize_tiles_transposed(normal(256, 256), offs)
    x_t, x_scales_t = ops.quantize_tiles_transposed(x, offs)
    _, _, gu_codes, gu_scales = ops.swiglu_quantize(x, cache=True)
    logits = x.clone()
    rows = torch.arange(256, dtype=torch.int32) // 2 * 2
    _, rstd = torch.ops.deepseek_ext.rms_norm(x, torch.ones(1024), 1e-6)
    dense, few = (codes, scales, w_codes, w_scales), (codes[:8], scales[:8], w_codes, w_scales)
    return [
        Case("quantize_tiles", x),
        Case("quantize_tiles_transposed", x),
        Case("quantize_tiles_both", x),
        Case("quantize_blocks", weight.float(), note="512 x 1024 FP32"),
        Case("transpose_blocks", w_codes, w_scales, note="512 x 1024"),
        Case("dequantize_tiles", codes, scales, torch.float32, note="to FP32"),
        Case("retile", codes, scales),
        Case("quantize_e5m6", x),
        Case("dequantize_e5m6", packed, packed_scales, 1024, torch.bfloat16),
        Case("retile_e5m6", packed, packed_scales, 1024),
        Case("gemm", *dense, note="256 x 512 x 1024, tile 128x128", tile="128x128"),
        Case("gemm", *dense, note="256 x 512 x 1024, tile 64x64", tile="64x64"),
        Case("gemm", *few, note="8 x 512 x 1024, tile 16x64", tile="16x64"),
        Case("gemm", normal_codes(256, 512), torch.ones(256, 4), w_codes.t(), w_scales.t(),
             note="256 x 1024 x 512, transposed weight", tile="128x128"),
        Case("grouped_gemm", codes, scales, experts, expert_scales, offs, note="4 experts, 256 x 256 x 1024",
             tile="64x64"),
        Case("grouped_gemm_wgrad", g_t, g_scales_t, x_t, x_scales_t, offs, note="4 experts, 256 x 1024",
             tile="128x128"),
        Case("swiglu", x),
        Case("swiglu_quantize", x),
        Case("swiglu_backward", normal(256, 512), gu_codes, gu_scales),
        Case("gather_rows", x, rows, 1, note="every second row twice"),
        Case("rms_norm", x, torch.ones(1024), 1e-6),
        Case("rms_norm_again", x, torch.ones(1024), rstd),
        Case("rms_norm_backward", normal(256, 1024), x, torch.ones(1024), rstd),
        Case("cross_entropy_", logits, torch.zeros(256, dtype=torch.int64), written=[logits]),
    ]  # fmt: skip


def normal_codes(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)).to(torch.float8_e4m3fn)


def launches_of(case: Case, kernel: Callable[..., Any], library: ctypes.CDLL) -> tuple[list[dict], int]:
    """Counters of what the call launches, and the bytes that any kernel must move for it."""
    os.environ["DSE_GEMM_TILE"] = case.tile
    if not case.tile:
        del os.environ["DSE_GEMM_TILE"]
    results = kernel(*case.arguments)
    outputs = [results] if isinstance(results, Tensor) else [r for r in results if r is not None]
    return json.loads(library.ptxsim_counters()), sum(
        t.nbytes for t in [*case.tensors(), *case.written, *outputs]
    )


def per_request(launches: list[dict], kind: str) -> str:
    requests = sum(launch[kind]["requests"] for launch in launches)
    return f"{sum(launch[kind]['sectors'] for launch in launches) / requests:.1f}" if requests else "-"


def simulated_row(case: Case, launches: list[dict], least: int) -> list[str]:
    moved = SECTOR * sum(launch[k]["sectors"] for launch in launches for k in ("global_load", "global_store"))
    ideal = sum(launch[k]["ideal"] for launch in launches for k in ("shared_load", "shared_store"))
    taken = sum(launch[k]["wavefronts"] for launch in launches for k in ("shared_load", "shared_store"))
    instructions = sum(launch["instructions"] for launch in launches)
    return [
        case.name(),
        str(len(launches)),
        per_request(launches, "global_load"),
        per_request(launches, "global_store"),
        f"{taken / ideal - 1:.0%}" if ideal else "-",
        f"{instructions / least:.2f}",
        f"{moved / least:.2f}",
    ]


def simulated_table() -> str:
    """What each case does on the simulator; an operator without a CUDA kernel is left out."""
    import backends

    kernels = backends.simulated_kernels()
    library = ctypes.CDLL("libptxsim.so")
    library.ptxsim_counters.restype = ctypes.c_char_p
    rows = []
    for case in cases():
        if case.operator in kernels:
            launches, least = launches_of(case, kernels[case.operator], library)
            rows.append(simulated_row(case, launches, least))
    head = [
        "operator, 256 x 1024 BF16 unless said",
        "launches",
        "sectors a load",
        "sectors a store",
        "bank conflicts",
        "thread instructions a byte",
        "bytes moved / least",
    ]
    return table(head, rows)


def main() -> None:
    """With a table's name, that one alone."""
    chosen = sys.argv[1:] or ["compiled", "simulated"]
    page = PAGE.read_text()
    if "compiled" in chosen:
        with tempfile.TemporaryDirectory() as folder:
            page = with_section(page, "compiled", compiled_table(ptxas.compile_all(Path(folder))))
    if "simulated" in chosen:
        page = with_section(page, "simulated", simulated_table())
    PAGE.write_text(re.sub(r"[ \t]+\n", "\n", page))


if __name__ == "__main__":
    main()
