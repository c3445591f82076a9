"""Writes the tables of CUDA kernels in docs/performance.md: `make docs-kernels`. Needs nvcc, no GPU.

The first table is what ptxas allots (tests/cubin compares it with a new compilation), the second what a
launch of each operator does on the simulator: requests to memory, bank conflicts, instructions and bytes
(tests/ops/test_kernel_table.py counts again). hopper_counts.py makes two more.
"""

from __future__ import annotations

import ctypes
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/cubin"), str(ROOT / "docs")]

import hopper_counts  # noqa: E402  found by the line above
import ptxas  # noqa: E402
from kernel_cases import Case, cases  # noqa: E402
from kernel_counts import SECTOR, launches_of, table  # noqa: E402

PAGE = ROOT / "docs/performance.md"
COPIES = ("copied_bytes", "bulk_load_bytes", "bulk_store_bytes")  # that pass by loads and stores
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


def row_name(kernel: ptxas.Kernel) -> str:
    """The row of a kernel: all instantiations of a template share one, except the gemm's tiles."""
    if tile := re.match(r"gemm_kernel<Tile<(\d)>", kernel.name):
        return f"gemm_kernel, tile {GEMM_TILES[int(tile[1])]}"
    if tile := re.match(r"hopper::gemm_kernel<hopper::Tile<(\d+), (\d+)>", kernel.name):
        return f"gemm_kernel, tile {tile[1]}x{tile[2]}"
    return kernel.name.partition("<")[0]


def most_registers(kernels: list[ptxas.Kernel], architecture: str) -> str:
    """sm_90 stands for sm_90a as well."""
    of_it = [k.registers for k in kernels if k.architecture.removesuffix("a") == architecture]
    return str(max(of_it)) if of_it else "-"


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
            *(most_registers(same, a) for a in ptxas.ARCHITECTURES),
            str(max(k.shared for k in same)),
        ]
        for (file, name), same in sorted(rows.items())
    ]
    registers = [f"registers, {a}" for a in ptxas.ARCHITECTURES]
    head = ["file", "kernel", "instantiations", *registers, "static shared bytes"]
    return f"nvcc {ptxas.version()}; no kernel spills or uses local memory.\n\n{table(head, lines)}"


def per_request(launches: list[dict], kind: str) -> str:
    requests = sum(launch[kind]["requests"] for launch in launches)
    return f"{sum(launch[kind]['sectors'] for launch in launches) / requests:.1f}" if requests else "-"


HEAD = [
    "operator, 256 x 1024 BF16 unless said",
    "launches",
    "shared bytes a block",
    "sectors a load",
    "sectors a store",
    "bank conflicts",
    "thread instructions a byte",
    "least KB",
    "KB moved",
    "moved / least",
]


def simulated_row(case: Case, launches: list[dict], least: int) -> list[str]:
    accesses = ("global_load", "global_store", "global_atomic")
    moved = SECTOR * sum(launch[kind]["sectors"] for launch in launches for kind in accesses)
    moved += sum(launch[kind] for launch in launches for kind in COPIES)
    ideal = sum(launch[k]["ideal"] for launch in launches for k in ("shared_load", "shared_store"))
    taken = sum(launch[k]["wavefronts"] for launch in launches for k in ("shared_load", "shared_store"))
    instructions = sum(launch["instructions"] for launch in launches)
    return [
        case.name(),
        str(len(launches)),
        str(max(launch["shared_bytes"] for launch in launches)),
        per_request(launches, "global_load"),
        per_request(launches, "global_store"),
        f"{taken / ideal - 1:.0%}" if ideal else "-",
        f"{instructions / least:.2f}",
        f"{least / 1e3:.1f}",
        f"{moved / 1e3:.1f}",
        f"{moved / least:.2f}",
    ]


def simulated_table() -> str:
    """What each case does on the simulator, under one schedule."""
    import backends

    kernels = backends.simulated_kernels()
    backends.simulator_option("seed", 0)
    library = ctypes.CDLL("libptxsim.so")
    with backends.on_cpu():
        made = cases()
    if missing := kernels.keys() - {case.operator for case in made}:
        raise ValueError(f"no case for {', '.join(sorted(missing))}; add one to docs/kernel_cases.py")
    rows = [simulated_row(case, *launches_of(case, kernels[case.operator], library)) for case in made]
    return table(HEAD, rows)


def main() -> None:
    """With a table's name, that one alone."""
    chosen = sys.argv[1:] or ["compiled", "simulated", "hopper", "fusion"]
    page = PAGE.read_text()
    if "compiled" in chosen:
        with tempfile.TemporaryDirectory() as folder:
            page = with_section(page, "compiled", compiled_table(ptxas.compile_all(Path(folder))))
    if "simulated" in chosen:
        page = with_section(page, "simulated", simulated_table())
    if {"hopper", "fusion"} & set(chosen):
        import backends

        kernels = backends.simulated_kernels()
        backends.simulator_option("seed", 0)
        page = with_section(page, "hopper", hopper_counts.hopper_table(kernels))
        page = with_section(page, "fusion", hopper_counts.fusion_table(kernels))
    PAGE.write_text(re.sub(r"[ \t]+\n", "\n", page))


if __name__ == "__main__":
    main()
