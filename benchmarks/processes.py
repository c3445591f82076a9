"""Training steps in one process of two threads and in two of one, of as many tokens: what sharing costs.

    python benchmarks/processes.py                    the recipe's model; tokens/s, and shares of a step
    python benchmarks/processes.py --hidden-size 512  a wider one

The layouts take turns, in processes that live through the whole run; each trains the same model by the
trainer's own step, on random tokens, over gloo. Shares are of torch.profiler's events in further steps, by
the time they take themselves, mean of the ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

ROUNDS, STEPS, WARM, PROFILED = 9, 2, 3, 3
STEP = "a whole step"


@dataclass(frozen=True)
class Layout:
    processes: int
    ep: int
    threads: int


LAYOUTS = {
    "1 process, 2 threads": Layout(1, 1, 2),
    "1 process, 1 thread": Layout(1, 1, 1),
    "2 processes, --ep 1": Layout(2, 1, 1),
    "2 processes, --ep 2": Layout(2, 2, 1),
}

# What a profiled event belongs to: the first pattern that its name matches, or that of the nearest event
# around it that matches one. The rest is compute if an operator, else Python.
SHARES = {
    "exchange: waiting": r"_c10d_functional::wait_tensor",
    "exchange: starting": r"_c10d_functional::all_to_all_single",
    "exchange: routing": r"deepseek_ext::exchange_routing",
    "exchange: packing": r"deepseek_ext::((un)?pack_rows|exchange_)",
    "ZeRO: gathering weights": r"FSDP::(all_gather|pre_forward|pre_backward)",
    "ZeRO: adding up gradients": r"FSDP::post_backward",
    "numbers of all ranks": r"c10d::allreduce_",
}


class RandomText:
    """Batches of random tokens, as the trainer reads them."""

    def __init__(self, vocabulary: int, length: int) -> None:
        self.vocabulary, self.length = vocabulary, length
        self.generator = torch.Generator().manual_seed(0)

    def batch(self, sequences: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(self.vocabulary, (sequences, self.length + 1), generator=self.generator)
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def work(layout: Layout, options: dict[str, Any]) -> None:
    """A rank: a line in, then seconds a step, or seconds of each share of a step, out."""
    from deepseek_ext.parallel.world import joined
    from deepseek_ext.train import TrainConfig
    from deepseek_ext.train.environment import keep_freed_memory
    from deepseek_ext.train.trainer import Trainer

    torch.set_num_threads(layout.threads)
    config = TrainConfig(**options, ep=layout.ep).derived()
    text = RandomText(config.vocab_size, config.seq_len)
    data: Any = SimpleNamespace(batches=text, document_starts=lambda _: None, bytes_per_token=1.0)
    with joined(ep=layout.ep, timeout=120) as world:
        trainer = Trainer(config, data, world)
        keep_freed_memory()
        for _ in range(WARM):
            trainer.train_step()
        print("ready", flush=True)
        for line in sys.stdin:
            found = shares(trainer) if line == "shares\n" else seconds(trainer)
            print(json.dumps(found), flush=True)


def seconds(trainer: Any) -> float:
    started = time.perf_counter()
    for _ in range(STEPS):
        trainer.train_step()
    return (time.perf_counter() - started) / STEPS


def shares(trainer: Any) -> dict[str, float]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as run:
        for _ in range(PROFILED):
            with torch.profiler.record_function(STEP):
                trainer.train_step()
    whole = next(event for event in run.events() if event.name == STEP)
    found = dict.fromkeys([*SHARES, "compute", "Python and autograd"], 0.0)
    for event in run.events():
        if event.thread == whole.thread:  # not gloo's own threads, which work beside it
            found[share_of(event)] += 1e-6 * event.self_cpu_time_total / PROFILED
    return found


def share_of(event: Any) -> str:
    around = event
    while around is not None:
        for share, pattern in SHARES.items():
            if re.match(pattern, around.name):
                return share
        around = around.cpu_parent
    return "compute" if "::" in event.name else "Python and autograd"


class Contestant:
    """The processes of a layout."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        layout = LAYOUTS[name]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": layout.processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self.ranks = [
            subprocess.Popen(
                [sys.executable, __file__, "--work", name, "--options", json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {k: str(v) for k, v in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()},
            )
            for rank in range(layout.processes)
        ]

    def answers(self) -> list[str]:
        return [rank.stdout.readline() for rank in self.ranks if rank.stdout]

    def ask(self, what: str) -> list[Any]:
        for rank in self.ranks:
            assert rank.stdin
            rank.stdin.write(f"{what}\n")
            rank.stdin.flush()
        return [json.loads(answer) for answer in self.answers()]

    def end(self) -> None:
        for rank in self.ranks:
            rank.kill()
            rank.wait()


def race(names: list[str], options: dict[str, Any]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Seconds of a step, and seconds of each share of a profiled one."""
    contestants = {name: Contestant(name, options) for name in names}
    try:
        for name, contestant in contestants.items():
            if any(answer != "ready\n" for answer in contestant.answers()):
                raise SystemExit(f"{name} could not start; its message is above")
        taken: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(ROUNDS):
            for name, contestant in contestants.items():
                taken[name].append(max(contestant.ask("seconds")))
        found = {}
        for name, contestant in contestants.items():
            ranks = contestant.ask("shares")
            found[name] = {share: statistics.mean(rank[share] for rank in ranks) for share in ranks[0]}
    finally:
        for contestant in contestants.values():
            contestant.end()
    return {name: statistics.median(seconds) for name, seconds in taken.items()}, found


def report(names: list[str], options: dict[str, Any]) -> None:
    from deepseek_ext import ops
    from deepseek_ext.train import TrainConfig

    config = TrainConfig(**options).derived()
    assert config.sequences is not None
    tokens = config.sequences * config.seq_len
    times, found = race(names, options)
    first = times[names[0]]
    print(f"{config.sequences} x {config.seq_len} tokens a step, tier {ops.cpu_capability()}")
    print(f"{'':32}" + "".join(f"{name:>22}" for name in names))
    print(f"{'tokens/s':32}" + "".join(f"{tokens / times[name]:22,.0f}" for name in names))
    print(f"{'ratio':32}" + "".join(f"{first / times[name]:22.2f}" for name in names))
    print(f"{'ms a step':32}" + "".join(f"{1e3 * times[name]:22.1f}" for name in names))
    for share in found[names[0]]:
        whole = [sum(found[name].values()) for name in names]
        cells = (found[name][share] / total for name, total in zip(names, whole, strict=True))
        print(f"{share:32}" + "".join(f"{cell:22.1%}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--hidden-size", type=int)
    parser.add_argument("--sequences", type=int)
    parser.add_argument("--micro-sequences", type=int)
    parser.add_argument("--layout", choices=LAYOUTS, action="append")
    parser.add_argument("--work", choices=LAYOUTS, help=argparse.SUPPRESS)
    parser.add_argument("--options", help=argparse.SUPPRESS)
    options = vars(parser.parse_args())
    name, given, names = options.pop("work"), options.pop("options"), options.pop("layout")
    if name:
        work(LAYOUTS[name], json.loads(given))
    else:
        report(names or list(LAYOUTS), {k: v for k, v in options.items() if v is not None})


if __name__ == "__main__":
    main()
