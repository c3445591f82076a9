"""A disk that is full, or may not be written: the run goes on, says so, and loses nothing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nursery import Nursery  # type: ignore[import-not-found]
from same_run import assert_same_run, rows  # type: ignore[import-not-found]
from tiny_run import Flags  # type: ignore[import-not-found]
from tiny_trainer import quiet_progress, train  # type: ignore[import-not-found]

from deepseek_ext.train import TrainConfig, checkpoint
from deepseek_ext.train.data import prepare_data
from deepseek_ext.train.metrics import read_metrics
from deepseek_ext.train.trainer import Stop, Trainer

SIZE = 16 << 20  # a checkpoint of the tiny run takes 3.8 MB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", path], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """A file that leaves so many bytes free."""
    ballast = disk / "ballast"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    ballast.write_bytes(bytes(free - leave))
    return ballast


def test_when_there_is_room_again_the_next_interval_saves(config: TrainConfig, disk: Path) -> None:
    data = prepare_data(config)
    undisturbed = Trainer(config, data)
    train(undisturbed)
    config = replace(config, run_dir=disk / "run")
    config.run_dir.mkdir()
    ballast = fill(disk, leave=6 << 20)
    trainer = Trainer(config, prepare_data(config, tokenizer=data.tokenizer))
    progress = quiet_progress(trainer)
    warnings: list[str] = []

    def say(text: str) -> None:
        if text.startswith("WARNING"):
            warnings.append(text)
            ballast.unlink()

    progress.say = say  # type: ignore[method-assign]
    assert trainer.train(progress, Stop()).saved
    (warning,) = warnings
    assert warning.startswith("WARNING: no checkpoint at step 4 (")
    assert "No space left on device" in warning
    last = config.run_dir / "checkpoints" / "step-00000002"
    assert warning.endswith(f"the last good one is {last}; next try at the next interval")
    names = [path.name for path in checkpoint.list_checkpoints(config.run_dir / "checkpoints")]
    assert names == ["step-00000006", "step-00000008", "step-00000010"]
    for name, tensor in trainer._tensors().items():
        assert torch.equal(tensor, undisturbed._tensors()[name]), name


def test_rows_wait_in_memory_for_room(config: TrainConfig, disk: Path) -> None:
    trainer = Trainer(replace(config, checkpoint_every=100), prepare_data(config))
    trainer.config.run_dir = disk / "run"
    step = trainer.train_step
    ballast: list[Path] = []

    def watched() -> dict[str, Any]:
        if trainer.step == 3:
            ballast.append(fill(disk))
        if trainer.step == 8:
            ballast[0].unlink()
        return step() | {"padding": "x" * 3000}  # more than what the file's last page still takes

    trainer.train_step = watched  # type: ignore[method-assign]
    outcome, said = train(trainer)
    assert outcome.saved
    assert said.count("WARNING") == 1
    assert "metrics.jsonl cannot be written (No space left on device); its rows wait in memory" in said
    assert [row["step"] for row in read_metrics(trainer.config.run_dir / "metrics.jsonl")] == [*range(1, 11)]


def test_a_disk_that_stays_full_ends_in_a_sentence_and_the_run_can_go_on(
    uninterrupted: tuple[Path, str], flags: Flags, nursery: Nursery, disk: Path
) -> None:
    """The log is on that disk too."""
    args = flags(run_dir=disk / "run", checkpoint_every=4, prompts=())
    (disk / ".cache").symlink_to(uninterrupted[0].parent / ".cache")
    ballast = fill(disk, leave=6 << 20)
    life = nursery.start(args, disk / "log.txt")
    assert life.wait() == 1
    assert "WARNING: no checkpoint at step 8 (" in life.said()
    assert "Traceback" not in life.said()
    assert [path.name for path in (disk / "run" / "checkpoints").iterdir()] == ["step-00000004"]
    ballast.unlink()
    assert nursery.start(args, disk / "log.txt").wait() == 0
    assert_same_run(disk / "run", uninterrupted[0])


def test_a_log_on_a_full_disk_does_not_stop_the_run(
    flags: Flags, nursery: Nursery, disk: Path, tmp_path: Path
) -> None:
    life = nursery.start(flags(validate_every=1), disk / "log.txt")
    assert life.reaches((tmp_path / "run" / "metrics.jsonl").exists)
    fill(disk)
    life.wait()
    assert "to export" not in life.said()  # there was no room for it
    assert [row["step"] for row in rows(tmp_path / "run")] == [*range(1, 11)]
    assert checkpoint.list_checkpoints(tmp_path / "run" / "checkpoints")[-1].name == "step-00000010"


def test_a_disk_that_is_full_from_the_start_is_one_line(
    flags: Flags, nursery: Nursery, disk: Path, tmp_path: Path
) -> None:
    fill(disk)
    life = nursery.start(flags(run_dir=disk / "run"), tmp_path / "log.txt")
    assert life.wait() in (1, 2)
    assert "No space left on device" in life.said()
    assert "Traceback" not in life.said()


def test_a_folder_that_may_not_be_written_is_refused(
    uninterrupted: tuple[Path, str], flags: Flags, nursery: Nursery, disk: Path, tmp_path: Path
) -> None:
    run = disk / "run"
    run.mkdir()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    life = nursery.start(flags(run_dir=run), tmp_path / "log.txt")
    assert life.wait() == 2
    assert life.said() == (
        f"deepseek-ext train: --run-dir {run} cannot be written (Read-only file system); choose another\n"
    )
    assert not any(run.iterdir())
