"""Side-by-side timing: ours and its rivals take turns in one process, and the medians' ratio is what counts.

Every benchmark calls `versus(...)` once. The result is printed as one table at the end, and stored in
pytest-benchmark's JSON (`extra_info`), which `make bench-compare` reads.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek_ext import _native, ops


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
    parser.addoption("--device", choices=["cpu", "cuda"], default="cpu", help="where the operators run")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch sees no GPU")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A GPU has no tiers, and one host thread feeds it: of each benchmark one instance is left."""
    if config.getoption("--device") == "cpu":
        return
    kept = {"tier": "avx512_bf16", "threads": 1}
    others = [
        item
        for item in items
        if hasattr(item, "callspec")
        and any(item.callspec.params.get(name, value) != value for name, value in kept.items())
    ]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


# What benchmarks make tensors with. Random numbers are drawn on the CPU, whose generators they are given.
DRAWN = ["rand", "randn", "randint", "randperm"]
MADE = ["arange", "empty", "full", "ones", "tensor", "zeros"]


@pytest.fixture(autouse=True)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device of --device; tensors made without naming one are made there."""
    chosen: str = request.config.getoption("--device")
    if chosen == "cpu":
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


def _made_on(make: Callable[..., Tensor], device: str, *args: Any, **kwargs: Any) -> Tensor:
    return make(*args, **{"device": device} | kwargs)


@pytest.fixture(scope="session", autouse=True)
def keep_freed_memory() -> None:
    """Lets glibc hand freed memory out again instead of returning it to the system.

    An operator allocates its results, the copy it is compared with does not. By default glibc maps
    every allocation above 32 MiB anew, and each of its pages then costs a fault at the first write: 79 % of
    the time of quantize_tiles for 8192 x 7168 codes, and nothing that a kernel could change. These figures
    are without, ours and the rivals' alike; a caller who lets large results go pays for the faults besides.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


def time_in_turns(
    functions: dict[str, Callable[[], Any]],
    rounds: int = 9,
    seconds: float = 0.02,
    wait: Callable[[], Any] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds per call of each function, `rounds` samples each, taken in turns: A B C A B C ...

    wait: called before a clock is read, until what was begun is done.
    """
    calls = {}
    for name, function in functions.items():
        function()
        wait()
        start = time.perf_counter()
        function()
        wait()
        calls[name] = max(1, int(seconds / max(time.perf_counter() - start, 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                function()
            wait()
            samples[name].append((time.perf_counter() - start) / calls[name])
    return samples


@pytest.fixture
def versus(benchmark: Any, request: pytest.FixtureRequest, device: str) -> Callable[..., Row]:
    """versus(ours, rivals, flops= | bytes_moved=, goal=) -> Row.

    ours: the call to measure. rivals: name -> call doing the same work another way; the first is the one a
    user would pick. flops: floating-point operations of one call; bytes_moved: bytes that must move, read and
    written. A copy that touches as many bytes then takes its turn too, and the share of its bandwidth is
    shown beside the goal for it.
    """

    def run(
        ours: Callable[[], Any],
        rivals: dict[str, Callable[[], Any]],
        *,
        flops: float | None = None,
        bytes_moved: float | None = None,
        goal: float | None = None,
        rounds: int = 9,
        **notes: Any,
    ) -> Row:
        turns = {"ours": ours, **rivals}
        if bytes_moved is not None:
            source = torch.zeros(int(bytes_moved) // 2, dtype=torch.uint8)
            target = torch.empty_like(source)
            turns["copy"] = lambda: target.copy_(source)
        if device == "cuda":
            try:
                ours()
            except NotImplementedError as error:  # what a missing kernel is to torch
                pytest.skip(f"no CUDA kernel: {str(error).splitlines()[0]}")
        wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        samples = time_in_turns(turns, rounds, wait=wait)
        medians = {name: statistics.median(s) for name, s in samples.items()}
        row = Row(
            case=request.node.name,
            ours=medians.pop("ours"),
            copy=medians.pop("copy", None),
            rivals=medians,
            flops=flops,
            bytes_moved=bytes_moved,
            goal=goal,
            spread=max(samples["ours"]) / min(samples["ours"]),
            notes=notes,
        )
        _rows.append(row)
        rate, unit = row.rate()
        benchmark.extra_info.update(
            ours_seconds=row.ours,
            ratios={name: row.ratio(name) for name in medians},
            rate=rate,
            unit=unit,
            share_of_copy_bandwidth=row.share(),
            goal=goal,
            capability=ops.cpu_capability() if device == "cpu" else torch.cuda.get_device_name(),
            threads=torch.get_num_threads(),
            **notes,
        )
        benchmark.pedantic(ours, rounds=3, iterations=1, warmup_rounds=0)
        return row

    return run


@pytest.fixture
def measure(versus: Callable[..., Row]) -> Callable[..., Row]:
    """measure(ours, rivals, inputs, goal=None) -> Row, for a call that moves memory more than it computes.

    The bytes that must move are those of the tensors `inputs` and of what `ours` returns. goal: the share of
    copy bandwidth to reach.
    """

    def run(
        ours: Callable[[], Any],
        rivals: dict[str, Callable[[], Any]],
        inputs: Iterable[Tensor],
        goal: float | None = None,
    ) -> Row:
        results = ours()
        moved = [*inputs, *([results] if isinstance(results, Tensor) else results)]
        return versus(ours, rivals, bytes_moved=sum(t.nbytes for t in moved if t is not None), goal=goal)

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
    on_cpu = terminalreporter.config.getoption("--device") == "cpu"
    where = f"CPU tier of this host: {_native.host_capability()}" if on_cpu else torch.cuda.get_device_name()
    write(f"{where}; times are medians of calls taken in turns")
    write(f"{'case':58} {'ours':>10} {'rate':>16} {'share':>24}  ratio to rivals (above 1: ours is faster)")
    for row in _rows:
        rate, unit = row.rate()
        share = "" if row.share() is None else f"{row.share():.0%} of copy"
        if row.goal is not None:
            share += f" (goal {row.goal:.0%})"
        ratios = ", ".join(f"{name} {row.ratio(name):.2f}x" for name in row.rivals)
        write(f"{row.case:58} {row.ours * 1e6:8.1f}us {rate:8.1f} {unit:7} {share:>24}  {ratios}")
