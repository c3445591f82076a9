"""The smallest run that is still the whole recipe, and the example in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
Flags = Callable[..., list[str]]
WALL_CLOCK = {"tokens_per_second", "gflops_per_second", "share_of_peak", "seconds"}
"""What differs between two runs that are the same: fields of metrics.jsonl."""

# 2 layers, one dense and one MoE; 128 tokens a step.
TINY = {
    "depth": "2",
    "hidden-size": "64",
    "heads": "2",
    "experts": "8",
    "expert-size": "64",
    "vocab-size": "384",
    "seq-len": "32",
    "sequences": "4",
    "tokens": "1280",
    "precision": "fp32",
    "threads": "1",
    "prompts": "the ",
}


def tiny_flags(**changes: object) -> list[str]:
    """The flags of the tiny run, with changes by keyword (checkpoint_every=3, prompts=())."""
    settings: dict[str, object] = {**TINY}
    settings.update({name.replace("_", "-"): value for name, value in changes.items()})
    flags: list[str] = []
    for name, value in settings.items():
        flags += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return flags


def start_example(args: list[str], *, nohup: bool = False) -> subprocess.Popen[str]:
    """examples/pretrain.py in a process of its own."""
    return subprocess.Popen(
        [*(["nohup"] if nohup else []), sys.executable, str(ROOT / "examples" / "pretrain.py"), *args],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hear_hangups,
    )


def _hear_hangups() -> None:
    """Also where the tests themselves run under nohup, which children inherit."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
