"""Side-by-side timing: ours and its rivals take turns in one process, and the medians' ratio is what counts.

Every benchmark calls `versus(...)` once. The result is printed as one table at the end, and stored in
pytest-benchmark's JSON (`extra_info`), which `make bench-compare` reads.
"""

from __future__ import annotations

import functools
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from clocks import Clock, DeviceClock, HostClock, time_in_turns
from memory import keep_freed_memory
from torch import Tensor

from deepseek_ext import _native, ops

DEVICES = ["cpu", "cuda", "simulator"]
GOAL_ON_GPU = 0.9  # of the copy's bandwidth, where a benchmark has a goal for CPUs


@dataclass
class Row:
    case: str
    ours: float
    rivals: dict[str, float]
    flops: float | None
    bytes_moved: float | None
    copy: float | None
    goal: float | None
    spread: float
    missing: dict[str, str] = field(default_factory=dict)
    """Rivals that do not run here, and why."""
    notes: dict[str, Any] = field(default_factory=dict)

    def ratio(self, rival: str) -> float:
        return self.rivals[rival] / self.ours

    def share(self) -> float | None:
        return None if self.copy is None else self.copy / self.ours

    def rate(self) -> tuple[float, str]:
        if self.flops is not None:
            return self.flops / self.ours / 1e9, "GFLOP/s"
        if self.bytes_moved is not None:
            return self.bytes_moved / self.ours / 1e9, "GB/s"
        return 1 / self.ours, "calls/s"


_rows: list[Row] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        choices=DEVICES,
        default="cpu",
        help="where the operators run; simulator: CUDA kernels without a GPU, where a dry run makes sense",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch sees no GPU")
    # pytest-benchmark keeps the JSON file; its table would show three calls of ours beside our own medians.
    config.option.benchmark_quiet = True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a module the devices that its DEVICES names, cpu and cuda unless it says so.

    Other than a CPU has no tiers, and one host thread feeds it: of each benchmark one instance is left.
    """
    device = config.getoption("--device")
    kept = {} if device == "cpu" else {"tier": "avx512_bf16", "threads": 1}

    def runs(item: pytest.Item) -> bool:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        return device in getattr(item.module, "DEVICES", ["cpu", "cuda"]) and all(
            parameters.get(name, value) == value for name, value in kept.items()
        )

    config.hook.pytest_deselected(items=[item for item in items if not runs(item)])
    items[:] = [item for item in items if runs(item)]


# What benchmarks make tensors with. Random numbers are drawn on the CPU, whose generators they are given.
DRAWN = ["rand", "randn", "randint", "randperm"]
MADE = ["arange", "empty", "full", "linspace", "ones", "tensor", "zeros"]


@pytest.fixture(autouse=True)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device of --device; tensors made without naming one are made there, until `versus` begins."""
    chosen: str = request.config.getoption("--device")
    if chosen == "simulator":
        request.getfixturevalue("_simulated")
    if chosen != "cuda":
        return chosen

    def drawn(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **kwargs: make(*args, **{"device": "cpu"} | kwargs).to(
            kwargs.get("device", chosen)
        )

    for name in DRAWN:
        monkeypatch.setattr(torch, name, drawn(getattr(torch, name)))
    for name in MADE:
        make = getattr(torch, name)
        monkeypatch.setattr(torch, name, functools.partial(_made_on, make, chosen))
    return chosen


def _made_on(make: Callable[..., Tensor], chosen: str, *args: Any, **kwargs: Any) -> Tensor:
    named = kwargs.pop("device", None)  # which modules pass on as None
    return make(*args, device=chosen if named is None else named, **kwargs)


@pytest.fixture(scope="session")
def _simulated() -> Iterator[None]:
    """For the session, operators run their CUDA kernels on the tests' simulator."""
    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    import backends

    with backends.instead_of_cpu_kernels(backends.simulated_kernels()):
        yield


@pytest.fixture(scope="session")
def clock(request: pytest.FixtureRequest) -> Clock:
    return DeviceClock() if request.config.getoption("--device") == "cuda" else HostClock()


@pytest.fixture(scope="session", autouse=True)
def memory_is_kept() -> None:
    keep_freed_memory()


@pytest.fixture
def versus(
    benchmark: Any,
    request: pytest.FixtureRequest,
    device: str,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Row]:
    """versus(ours, rivals, flops= | bytes_moved=, goal=, compiled=, from_host=) -> Row.

    ours: the call to measure. rivals: name -> call doing the same work another way; the first is the one a
    user would pick. flops: floating-point operations of one call; bytes_moved: bytes that must move, read and
    written. A copy that touches as many bytes then takes its turn too, and the share of its bandwidth is
    shown beside the goal for it. compiled: a rival that torch.compile makes faster, on a GPU alone.
    from_host: what the host spends on a call counts, also on a GPU.
    """

    def run(
        ours: Callable[[], Any],
        rivals: dict[str, Callable[[], Any]],
        *,
        flops: float | None = None,
        bytes_moved: float | None = None,
        goal: float | None = None,
        rounds: int = 9,
        compiled: Callable[[], Any] | None = None,
        from_host: bool = False,
        missing: dict[str, str] | None = None,
        **notes: Any,
    ) -> Row:
        monkeypatch.undo()
        turns = {"ours": ours, **rivals}
        missing = dict(missing or {})
        if bytes_moved is not None:
            source = torch.zeros(int(bytes_moved) // 2, dtype=torch.uint8, device=memory_of(device))
            target = torch.empty_like(source)
            turns["copy"] = lambda: target.copy_(source)
        if device == "cuda":
            goal = None if goal is None else GOAL_ON_GPU
            if compiled is not None:
                torch._dynamo.reset()  # else later shapes of a benchmark become one dynamic shape
                turns["compiled"] = torch.compile(compiled, dynamic=False)
            missing |= without_what_fails(turns)
        timing = {"rounds": 1, "most": 1} if device == "simulator" else {"rounds": rounds}
        if device == "cuda":
            timing["most"] = 50
        chosen = HostClock(torch.cuda.synchronize) if from_host and device == "cuda" else clock
        samples = time_in_turns(turns, chosen, **timing)
        medians = {name: statistics.median(s) for name, s in samples.items()}
        row = Row(
            case=case_of(request.node.name, device),
            ours=medians.pop("ours"),
            copy=medians.pop("copy", None),
            rivals=medians,
            flops=flops,
            bytes_moved=bytes_moved,
            goal=goal,
            spread=max(samples["ours"]) / min(samples["ours"]),
            missing=missing,
            notes=notes,
        )
        _rows.append(row)
        rate, unit = row.rate()
        benchmark.extra_info.update(
            case=row.case,
            ours_seconds=row.ours,
            ratios={name: row.ratio(name) for name in medians},
            missing=missing,
            rate=rate,
            unit=unit,
            share_of_copy_bandwidth=row.share(),
            goal=goal,
            capability=torch.cuda.get_device_name() if device == "cuda" else ops.cpu_capability(),
            threads=torch.get_num_threads(),
            **notes,
        )
        benchmark.pedantic(ours, rounds=1 if device == "simulator" else 3, iterations=1, warmup_rounds=0)
        return row

    return run


def memory_of(device: str) -> str:
    return "cuda" if device == "cuda" else "cpu"


def case_of(test: str, device: str) -> str:
    """A test's name, without the parameters of which a GPU has one alone."""
    return (
        test
        if device == "cpu"
        else re.sub(r"-?(1thread|avx512_bf16)", "", test).replace("[-", "[").removesuffix("[]")
    )


def without_what_fails(turns: dict[str, Callable[[], Any]]) -> dict[str, str]:
    """Calls each once, removes the rivals that a GPU refuses, and says what they said."""
    said = {}
    for name in [name for name in turns if name != "ours"]:
        try:
            turns[name]()
            torch.cuda.synchronize()
        except Exception as error:
            said[name] = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            del turns[name]
    return said


@pytest.fixture
def measure(versus: Callable[..., Row]) -> Callable[..., Row]:
    """measure(ours, rivals, inputs, goal=None, compiled=None) -> Row, for a call bound by memory.

    The bytes that must move are those of the tensors `inputs` and of what `ours` returns. goal: the share of
    copy bandwidth to reach.
    """

    def run(
        ours: Callable[[], Any],
        rivals: dict[str, Callable[[], Any]],
        inputs: Iterable[Tensor],
        goal: float | None = None,
        compiled: Callable[[], Any] | None = None,
    ) -> Row:
        results = ours()
        moved = [*inputs, *([results] if isinstance(results, Tensor) else results)]
        moved_bytes = sum(t.nbytes for t in moved if t is not None)
        return versus(ours, rivals, bytes_moved=moved_bytes, goal=goal, compiled=compiled)

    return run


@pytest.fixture(params=[1, 2], ids=["1thread", "2threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not _rows:
        return
    write = terminalreporter.write_line
    write("")
    device = terminalreporter.config.getoption("--device")
    where = {
        "cpu": f"CPU tier of this host: {_native.host_capability()}",
        "simulator": "the simulator, whose times say nothing",
    }.get(device) or torch.cuda.get_device_name()
    write(f"{where}; times are medians of calls taken in turns")
    write(f"{'case':58} {'ours':>10} {'rate':>16} {'share':>24}  ratio to rivals (above 1: ours is faster)")
    for row in _rows:
        rate, unit = row.rate()
        share = "" if row.share() is None else f"{row.share():.0%} of copy"
        if row.goal is not None:
            share += f" (goal {row.goal:.0%})"
        ratios = ", ".join(f"{name} {row.ratio(name):.2f}x" for name in row.rivals)
        write(f"{row.case:58} {row.ours * 1e6:8.1f}us {rate:8.1f} {unit:7} {share:>24}  {ratios}")
        for name, reason in row.missing.items():
            write(f"{'':58} {name} does not run: {reason}")
