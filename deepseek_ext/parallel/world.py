"""The processes of one run, and the few things they tell one another beside gradients and tokens."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, rendezvous  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

T = TypeVar("T")
_SECONDS_BETWEEN_SIGNS = 1.0
_SECONDS_OF_SILENCE = 3.5
_LED = "an error of the main rank"


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The processes that train one model; by default one alone, for which nothing here communicates.

    Neighbouring ranks form an expert group of `ep`: each of them holds other experts, and other data. Ranks
    `ep` apart hold the same experts: they are replicas.
    """

    rank: int = 0
    size: int = 1
    ep: int = 1
    """Ranks over which the routed experts of a layer are spread."""
    device: torch.device = field(default_factory=partial(torch.device, "cpu"))
    data: DeviceMesh | None = None
    """All ranks, in one dimension: everything but experts is sharded over it."""
    experts: DeviceMesh | None = None
    """All ranks in two dimensions, "replica" and "expert"."""
    signs: Signs | None = field(default=None, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this process writes what a run has once: files, the progress line."""
        return self.rank == 0

    @property
    def replicas(self) -> int:
        """Ranks that hold the same experts."""
        return self.size // self.ep

    def rows(self, x: Tensor) -> Tensor:
        """This rank's equal share of the rows of what all ranks have."""
        return x.chunk(self.size)[self.rank] if self.size > 1 else x

    def total(self, x: Tensor) -> Tensor:
        """The sum of all ranks' x, a new tensor unless there is one rank."""
        if self.size == 1:
            return x
        x = x.clone()
        dist.all_reduce(x)
        return x

    def any(self, flag: bool) -> bool:
        """Whether it holds on any rank."""
        if self.size == 1:
            return flag
        return bool(self.total(torch.tensor(int(flag), device=self.device)))

    def lead(self, action: Callable[[], T]) -> T:
        """What `action` returns on the main rank, or the exception it raises there, on every rank."""
        if self.size == 1:
            return action()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = action()
            except Exception as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome)
        result, raised = outcome
        if raised is not None:
            raised.add_note(_LED)
            raise raised
        return result

    def main_first(self, action: Callable[[], T]) -> T:
        """action() on the main rank, and then, where it finds the caches filled, on the others."""
        if self.size == 1:
            return action()
        result: list[T] = []
        self.lead(lambda: result.append(action()))
        return result[0] if result else action()

    def end(self, error: Exception) -> tuple[str, bool]:
        """What to say of an error that ends this rank, and of the ranks that it may come from; and whether
        there are such."""
        assert self.signs is not None
        cause = f"step {self.signs.step}: {_first_sentence(error)}"
        others = self.signs.farewell(cause)
        own = f"rank {self.rank} ({host()}) ended in {cause}"
        return (f"{own}; {others}", True) if others else (own, False)

    def alive(self, step: int) -> None:
        """Says that this rank begins `step`."""
        if self.signs is not None:
            self.signs.step = step

    def all(self, value: T) -> list[T]:
        """Every rank's value, by rank; small and picklable."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


class Signs:
    """Signs of life of all ranks, in the store of the launcher, which outlives any of them."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.step = 0
        self._store = PrefixStore("signs", store)
        self._rank, self._size = rank, size
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._give, name="signs of life", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """No more signs. A thread inside the store when Python ends would abort the process."""
        self._closed.set()
        self._thread.join()

    def farewell(self, cause: str) -> str:
        """Leaves word of why this rank ends; returns which ranks give no sign of life, or why others ended.

        A rank that waits for another still gives signs; one that was killed, stopped or lost does not.
        """
        try:
            self._store.set(f"end {self._rank}", cause)
            others = [rank for rank in range(self._size) if rank != self._rank]
            before = [self._last(rank) for rank in others]
            time.sleep(_SECONDS_OF_SILENCE)
            ended = {
                rank: self._store.get(f"end {rank}").decode() for rank in others if self._has_ended(rank)
            }
            silent = [
                f"rank {rank} gives no sign of life since step {sign.step}"
                for rank, sign in zip(others, before, strict=True)
                if rank not in ended and self._last(rank) == sign
            ]
            return "; ".join(silent or [f"rank {rank} ended too: {why}" for rank, why in ended.items()])
        except RuntimeError as error:
            return f"of the others nothing is known: {_first_sentence(error)}"

    def _give(self) -> None:
        number = 0
        while not self._closed.wait(_SECONDS_BETWEEN_SIGNS if number else 0.0):
            with suppress(RuntimeError):  # a launcher may end before its processes
                self._store.set(f"sign {self._rank}", f"{number} {self.step}")
            number += 1

    def _last(self, rank: int) -> _Sign:
        name = f"sign {rank}"
        text = self._store.get(name).decode() if self._store.check([name]) else "-1 0"
        return _Sign(*map(int, text.split()))

    def _has_ended(self, rank: int) -> bool:
        return self._store.check([f"end {rank}"])


class _Sign(NamedTuple):
    number: int
    step: int


def launched_size() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this is the first of the processes that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def joined(*, ep: int, timeout: float) -> Iterator[World]:
    """The processes that torchrun started, or this one alone; leaves them at the end of the block.

    timeout: seconds after which a collective that some rank does not take part in ends in an error. GPUs are
    used if there are any, with NCCL, and gloo otherwise.
    """
    size = launched_size()
    if size == 1:
        yield World()
        return
    limit = timedelta(seconds=timeout)
    store, rank, size = next(rendezvous("env://", timeout=limit))
    # The launcher's store outlives a restart, and with it what the ranks before it wrote.
    store = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    signs = Signs(store, rank, size)
    try:
        yield World(
            rank=rank,
            size=size,
            ep=ep,
            device=device,
            data=init_device_mesh(device.type, (size,), mesh_dim_names=("data",)),
            experts=init_device_mesh(device.type, (size // ep, ep), mesh_dim_names=("replica", "expert")),
            signs=signs,
        )
    finally:
        signs.close()
    dist.destroy_process_group()  # not after an error: it may wait for a rank that is gone


def tell_launcher(why: str) -> None:
    """Leaves word of why this process ends where torchrun looks for it, to show it in its summary."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        details = {"py_callstack": why, "timestamp": str(int(time.time()))}
        with suppress(OSError):
            Path(path).write_text(json.dumps({"message": {"message": why, "extraInfo": details}}))


def led(error: Exception) -> bool:
    """Whether every rank has this error, since the main rank had it (`World.lead`)."""
    return _LED in getattr(error, "__notes__", ())


def _first_sentence(error: Exception) -> str:
    """Of gloo's or NCCL's message, without the place in their sources and without addresses."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"^\[[^]]*\] ", "", text).removeprefix("Read error ").split(". ")[0]
    return re.sub(r"(^| )\[[\w.:]+\]:\d+(: )?", "", text)


def host() -> str:
    """Where this process runs, for a message among those of many."""
    return f"{socket.gethostname()}, process {os.getpid()}"
