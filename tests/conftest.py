"""What every test shares: the CPU tiers of this host, a seed made from the test's name, thread counts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
import torch
from cpu_tiers import CPU_TIERS, host_has

from deepseek_ext import _native, ops


@pytest.fixture(params=CPU_TIERS)
def cpu_tier(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on each CPU tier; a tier this host lacks is skipped, with that reason."""
    tier: str = request.param
    if not host_has(tier):
        pytest.skip(f"this CPU has {_native.host_capability()}, not {tier}")
    with ops.using_cpu_capability(tier):
        yield tier


@pytest.fixture(params=[1, 2], ids=["1thread", "2threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> torch.Generator:
    """A generator seeded from the test's name: the same numbers every run, others in every test."""
    digest = hashlib.sha256(request.node.nodeid.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@pytest.fixture(autouse=True)
def _seeded(rng: torch.Generator) -> None:
    torch.manual_seed(rng.initial_seed())
