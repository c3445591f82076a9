"""What every test shares: where its operators run, a seed made from the test's name, thread counts."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import backends
import pytest
import torch
from cpu_tiers import CPU_TIERS, host_has

from deepseek_ext import _native, ops


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        choices=backends.BACKENDS,
        default="cpu",
        help="where the operators of tests with the fixture `backend` run; other tests run on cpu alone",
    )
    parser.addoption(
        "--simulator-seed", type=int, default=0, help="another schedule of every simulated kernel"
    )
    parser.addoption(
        "--simulator-capability",
        type=int,
        choices=[80, 90],
        default=90,
        help="the simulated device's compute capability, which chooses between the PTX of a kernel",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--backend")
        metafunc.parametrize("backend", CPU_TIERS if chosen == "cpu" else [chosen], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    on_cpu = config.getoption("--backend") == "cpu"

    def runs(item: pytest.Item) -> bool:
        if item.get_closest_marker("gpu_backends"):
            return not on_cpu
        return on_cpu or "backend" in getattr(item, "fixturenames", ())

    others = [item for item in items if not runs(item)]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if runs(item)]


@pytest.fixture(scope="session")
def _no_cpu_kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """For the session, the operators run on the backend that was asked for."""
    chosen = request.config.getoption("--backend")
    kernels = backends.cuda_kernels() if chosen == "cuda" else backends.simulated_kernels()
    with backends.instead_of_cpu_kernels(kernels):
        yield


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on what --backend names: once on each CPU tier (cpu), on the simulator, or on a GPU."""
    with _chosen(request):
        yield request.param


@pytest.fixture(params=CPU_TIERS)
def cpu_tier(request: pytest.FixtureRequest) -> Iterator[str]:
    """For what only the CPU has: runs the test once on each tier."""
    with _chosen(request):
        yield request.param


def _chosen(request: pytest.FixtureRequest) -> contextlib.AbstractContextManager[None]:
    if request.param in CPU_TIERS:
        if not host_has(request.param):
            pytest.skip(f"this CPU has {_native.host_capability()}, not {request.param}")
        return ops.using_cpu_capability(request.param)
    request.getfixturevalue("_no_cpu_kernels")
    if request.param == "simulator":
        digest = hashlib.sha256(request.node.nodeid.encode()).digest()
        seed = int.from_bytes(digest[:4], "little") >> 1
        backends.simulator_option("capability", request.config.getoption("--simulator-capability"))
        backends.simulator_option("seed", seed ^ request.config.getoption("--simulator-seed"))
    return contextlib.nullcontext()


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
