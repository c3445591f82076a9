"""Every operator that the CPU has is there for CUDA."""

from __future__ import annotations

import backends
import pytest
import torch
from backends import SIMULATED, operators

pytestmark = pytest.mark.gpu_backends


def test_no_operator_is_missing(request: pytest.FixtureRequest) -> None:
    """By the dispatch keys of the library that was built; what Python registers for CUDA needs no library."""
    have = operators("CUDA")
    if request.config.getoption("--backend") == "simulator":
        backends.load_simulator()
        have |= operators("CPU", SIMULATED)
    assert operators("CPU") - have == set()


def test_simulated_operators_are_none_but_ours(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--backend") != "simulator":
        pytest.skip("of the simulator only")
    backends.load_simulator()
    assert operators("CPU", SIMULATED) <= operators("CPU")
    for name in operators("CPU", SIMULATED):
        ours, simulated = (getattr(getattr(torch.ops, n), name).default for n in ("deepseek_ext", SIMULATED))
        assert str(simulated._schema).replace(SIMULATED, "deepseek_ext") == str(ours._schema)
