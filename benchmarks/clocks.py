"""How long calls take: by the host's clock on a CPU, by events on the stream of a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any, Protocol

import torch


class Clock(Protocol):
    def seconds(self, function: Callable[[], Any], calls: int) -> float:
        """Of one call, from `calls` of them."""


class HostClock:
    """Calls one after the other, as a program makes them; `wait` ends what they began."""

    def __init__(self, wait: Callable[[], Any] = lambda: None) -> None:
        self.wait = wait

    def seconds(self, function: Callable[[], Any], calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            function()
        self.wait()
        return (time.perf_counter() - start) / calls


class DeviceClock:
    """The time between two events around each call, the L2 cache filled with something else before it.

    Filling it takes a GPU longer than Python takes to launch most calls, so what is timed is kernels, not
    the host.
    """

    def __init__(self) -> None:
        cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self.other = torch.empty(max(4 * cache, 256 * 2**20), dtype=torch.uint8, device="cuda")

    def seconds(self, function: Callable[[], Any], calls: int) -> float:
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
        for start, end in pairs:
            self.other.zero_()
            start.record()
            function()
            end.record()
        torch.cuda.synchronize()
        return median(start.elapsed_time(end) for start, end in pairs) / 1e3


def time_in_turns(
    functions: dict[str, Callable[[], Any]],
    clock: Clock,
    rounds: int = 9,
    seconds: float = 0.02,
    most: int = 100_000,
) -> dict[str, list[float]]:
    """Seconds per call of each function, `rounds` samples each, taken in turns: A B C A B C ...

    A sample is as many calls as take about `seconds`, at most `most`. The first calls, which may compile,
    do not count.
    """
    calls = {}
    for name, function in functions.items():
        clock.seconds(function, 2)
        calls[name] = min(most, max(1, int(seconds / max(clock.seconds(function, 1), 1e-7))))
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            samples[name].append(clock.seconds(function, calls[name]))
    return samples
