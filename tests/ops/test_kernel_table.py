"""The second table of kernels in docs/performance.md is what the simulator counts today."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / "cubin"), str(Path(__file__).parents[2] / "docs")]

import generate_kernels  # noqa: E402  found by the line above
import ptxas  # noqa: E402

pytestmark = pytest.mark.gpu_backends


def test_the_table_is_current(request: pytest.FixtureRequest) -> None:
    option = request.config.getoption
    if option("--backend") != "simulator" or option("--simulator-capability") != 90:
        pytest.skip("the simulator counts, on the device that it is unless told otherwise")
    page = generate_kernels.PAGE.read_text()
    if f"nvcc {ptxas.version()};" not in generate_kernels.section(page, "compiled"):
        pytest.skip(f"the table was made with another nvcc than {ptxas.version()}")
    counted = generate_kernels.simulated_table().splitlines()
    assert counted == generate_kernels.section(page, "simulated").splitlines(), "run make docs-kernels"
