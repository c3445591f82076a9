"""The table of kernels in docs/performance.md is what the compiler says today."""

from __future__ import annotations

import generate_kernels
import ptxas
import pytest


def test_the_table_is_current(kernels: list[ptxas.Kernel]) -> None:
    written = generate_kernels.section(generate_kernels.PAGE.read_text(), "compiled")
    if f"nvcc {ptxas.version()};" not in written:
        pytest.skip(f"the table was made with another nvcc than {ptxas.version()}")
    assert written == generate_kernels.compiled_table(kernels), "run make docs-kernels"


def test_a_section_is_replaced_and_nothing_else() -> None:
    begin, end = generate_kernels.marker("x"), generate_kernels.marker("x", end=True)
    page = f"before\n{begin}\nold\n{end}\nafter\n"
    new = generate_kernels.with_section(page, "x", "new")
    assert new == f"before\n{begin}\nnew\n{end}\nafter\n"
    assert generate_kernels.section(new, "x") == "new"


def test_a_row_of_counters() -> None:
    launch = {
        "instructions": 640,
        "shared_bytes": 16,
        "copied_bytes": 100,
        "bulk_load_bytes": 0,
        "bulk_store_bytes": 28,
        "global_load": {"requests": 2, "sectors": 32},
        "global_store": {"requests": 4, "sectors": 16},
        "global_atomic": {"requests": 1, "sectors": 1},
        "shared_load": {"wavefronts": 6, "ideal": 4},
        "shared_store": {"wavefronts": 4, "ideal": 4},
    }
    row = generate_kernels.simulated_row(generate_kernels.Case("add"), [launch, launch], least=1280)
    assert row == ["`add`", "2", "16", "16.0", "4.0", "25%", "1.00", "1.3", "3.4", "2.65"]
