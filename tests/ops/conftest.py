"""What tests of operators share beyond tests/conftest.py."""

from __future__ import annotations

import gemm_inputs
import pytest


@pytest.fixture(autouse=True)
def _bound_of_the_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's tensor cores cut what the CPU, and the simulator unless told otherwise, round."""
    if request.config.getoption("--backend") == "cuda":
        monkeypatch.setattr(gemm_inputs, "PARTIAL_SUMS", gemm_inputs.CUT)
