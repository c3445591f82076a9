"""Four processes that a test session starts once, and runs functions of its test modules in.

They form gloo groups of 1, 2 and 4: [0] [1] [2] [3], [0 1] [2 3], [0 1 2 3]; and, for the exchange in two
levels, nodes of two: [0 1] [2 3] inside, [0 2] [1 3] across.
"""

from __future__ import annotations

import importlib
import multiprocessing
import multiprocessing.connection
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

WORLD = 4
PATIENCE = 150.0  # seconds for one function


class Place:
    """What a function that runs in a rank is given first: its rank, and the groups it is in."""

    def __init__(self, rank: int) -> None:
        import torch.distributed as dist

        self.rank = rank
        self.groups = {}
        for size in (1, 2, WORLD):
            for first in range(0, WORLD, size):
                members = list(range(first, first + size))
                group = dist.new_group(members)
                if rank in members:
                    self.groups[size] = group
        self.inside = self.groups[2]
        for members in ([0, 2], [1, 3]):
            group = dist.new_group(members)
            if rank in members:
                self.across = group


def _serve(rank: int, store: str, pipe: multiprocessing.connection.Connection, path: list[str]) -> None:
    sys.path[:] = path
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, WORLD),
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=PATIENCE),
    )
    place = Place(rank)
    while (call := pipe.recv()) is not None:
        module, name, args = call
        try:
            torch.manual_seed(0)
            pipe.send((True, getattr(importlib.import_module(module), name)(place, *args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
    dist.destroy_process_group()


class Ranks:
    """The processes; `run` calls a function in all of them at once."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        store = str(Path(self._folder.name) / "store")
        self._pipes, self._processes = [], []
        for rank in range(WORLD):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, store, theirs, sys.path), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What function(place, *args) returns in each rank; fails with the first rank's traceback."""
        for pipe in self._pipes:
            pipe.send((function.__module__, function.__name__, args))
        answers: list[Any] = [None] * WORLD
        waiting = dict(zip(self._pipes, range(WORLD), strict=True))
        while waiting:
            ready = multiprocessing.connection.wait(list(waiting), PATIENCE)
            if not ready:
                self.close()
                raise AssertionError(f"ranks {sorted(waiting.values())} are silent for {PATIENCE} s")
            for pipe in ready:
                rank = waiting.pop(pipe)  # type: ignore[call-overload]
                good, value = pipe.recv()  # type: ignore[union-attr]
                if not good:  # the others may wait for this one for ever
                    self.close()
                    raise AssertionError(f"rank {rank}:\n{value}")
                answers[rank] = value
        return answers

    @property
    def alive(self) -> bool:
        return all(process.is_alive() for process in self._processes)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        self._folder.cleanup()
