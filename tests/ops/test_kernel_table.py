"""The tables of kernels in docs/performance.md but the first are what the simulator counts today."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / "cubin"), str(Path(__file__).parents[2] / "docs")]

import backends  # noqa: E402  found by the line above
import generate_kernels  # noqa: E402
import hopper_counts  # noqa: E402
import ptxas  # noqa: E402

pytestmark = pytest.mark.gpu_backends


@pytest.mark.parametrize("name", ["simulated", "hopper", "fusion"])
def test_the_table_is_current(request: pytest.FixtureRequest, name: str) -> None:
    option = request.config.getoption
    if option("--backend") != "simulator" or option("--simulator-capability") != 90:
        pytest.skip("the simulator counts, on the device that it is unless told otherwise")
    page = generate_kernels.PAGE.read_text()
    if f"nvcc {ptxas.version()};" not in generate_kernels.section(page, "compiled"):
        pytest.skip(f"the table was made with another nvcc than {ptxas.version()}")
    if name == "simulated":
        counted = generate_kernels.simulated_table()
    else:
        kernels = backends.simulated_kernels()
        backends.simulator_option("seed", 0)
        counted = getattr(hopper_counts, f"{name}_table")(kernels)
    assert counted.splitlines() == generate_kernels.section(page, name).splitlines(), "run make docs-kernels"
