"""The kernels' machine code, compiled once for all tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "docs")]

import ptxas  # noqa: E402  found by the line above


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> list[ptxas.Kernel]:
    if ptxas.compiler() is None:
        pytest.skip("needs nvcc in PATH")
    return ptxas.compile_all(tmp_path_factory.mktemp("cubin"))
