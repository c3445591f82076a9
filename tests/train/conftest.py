"""A folder of text for the tiny run, its flags, and its configuration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nursery import Nursery  # type: ignore[import-not-found]
from tiny_run import TINY, Flags, start_example, tiny_flags  # type: ignore[import-not-found]

from deepseek_ext.train import TrainConfig


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty small documents with enough repetition to be learnt from."""
    folder = tmp_path_factory.mktemp("text")
    for n in range(40):
        (folder / f"note{n}.txt").write_text(
            "".join(f"the value of item {k} in list {n} is {k * n % 7}.\n" for k in range(12))
        )
    return folder


@pytest.fixture
def flags(text_folder: Path, tmp_path: Path) -> Flags:
    """The flags of a tiny run in this test's folder, with changes by keyword."""

    def make(**changes: object) -> list[str]:
        return tiny_flags(**{"run_dir": tmp_path / "run", "data": text_folder, **changes})

    return make


@pytest.fixture
def config(tmp_path: Path, text_folder: Path) -> TrainConfig:
    settings: dict[str, Any] = {
        name.replace("-", "_"): int(value) if value.isdigit() else value for name, value in TINY.items()
    }
    settings |= {"prompts": (), "data": (str(text_folder),), "run_dir": tmp_path / "run"}
    return TrainConfig(**settings, checkpoint_every=2).derived()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> tuple[Path, str]:
    """The tiny run in one go, and what it printed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    process = start_example(tiny_flags(data=text_folder, run_dir=run, checkpoint_every=4))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return run, out
