"""What tests of operators share beyond tests/conftest.py."""

from __future__ import annotations

import gemm_inputs
import pytest
from backends import has_hopper


@pytest.fixture(autouse=True)
def _bound_of_the_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's tensor cores cut what the CPU, and the simulator unless told otherwise, round."""
    hopper = has_hopper(request.config)
    if request.config.getoption("--backend") == "cuda":
        cut = gemm_inputs.HOPPER_CUT if hopper else gemm_inputs.CUT
        monkeypatch.setattr(gemm_inputs, "PARTIAL_SUMS", cut)
    if hopper:
        monkeypatch.setattr(gemm_inputs, "ROW_BYTES", 16)
