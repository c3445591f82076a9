"""A tiny run that finishes in seconds, and a folder of text to train it on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

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


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty small documents with enough repetition to be learnt from."""
    folder = tmp_path_factory.mktemp("text")
    for n in range(40):
        (folder / f"note{n}.txt").write_text(
            "".join(f"the value of item {k} in list {n} is {k * n % 7}.\n" for k in range(12))
        )
    return folder


Flags = Callable[..., list[str]]


@pytest.fixture
def flags(text_folder: Path, tmp_path: Path) -> Flags:
    """The flags of the tiny run, with changes by keyword (checkpoint_every=3)."""

    def make(**changes: object) -> list[str]:
        settings: dict[str, object] = {**TINY, "run-dir": tmp_path / "run", "data": text_folder}
        settings.update({name.replace("_", "-"): value for name, value in changes.items()})
        return [word for name, value in settings.items() for word in (f"--{name}", str(value))]

    return make


def start_example(args: list[str]) -> subprocess.Popen[str]:
    """examples/pretrain.py in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "pretrain.py"), *args],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
