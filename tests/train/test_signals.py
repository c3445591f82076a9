"""SIGINT, once and twice, to the example in a process of its own; SIGTERM is in test_run.py."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from same_run import assert_same_tensors, rows  # type: ignore[import-not-found]
from tiny_run import Flags, start_example  # type: ignore[import-not-found]

from deepseek_ext import cli
from deepseek_ext.train import TrainConfig, checkpoint


def wait_for(process: object, run: Path, step: int) -> None:
    """Until a checkpoint at `step` is complete."""
    while not (run / "checkpoints" / f"step-{step:08d}").exists():
        assert process.poll() is None  # type: ignore[attr-defined]
        time.sleep(0.005)


def test_the_first_interrupt_saves_and_says_how_to_continue(
    uninterrupted: tuple[Path, str], flags: Flags, tmp_path: Path
) -> None:
    run, args = tmp_path / "run", flags(checkpoint_every=4)
    process = start_example(args)
    wait_for(process, run, 4)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "stopping after this step; Ctrl-C again stops at once" in err
    assert "Traceback" not in err
    stopped = rows(run)[-1]["step"]
    assert f"interrupted after step {stopped}, which is saved; to continue: python" in out
    assert checkpoint.list_checkpoints(run / "checkpoints")[-1].name == f"step-{stopped:08d}"
    assert cli.train(TrainConfig(), args, program="test") == 0
    assert_same_tensors(run, uninterrupted[0])


@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_saves_unless_nohup_said_otherwise(
    ignored: bool, flags: Flags, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    steps = 60 if ignored else 1000  # the signal must come before the end, however busy the machine is
    process = start_example(flags(checkpoint_every=4, tokens=128 * steps), nohup=ignored)
    wait_for(process, run, 4)
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    last = checkpoint.list_checkpoints(run / "checkpoints")[-1]
    assert (last.name == f"step-{steps:08d}") == ignored
    assert ("which is saved; to continue: " in out) != ignored


def test_an_interrupt_before_the_first_step_stops_at_once(flags: Flags, tmp_path: Path) -> None:
    """While the text is read, which may take minutes: there is nothing yet to save."""
    run = tmp_path / "run"
    process = start_example(flags())
    while not (run / ".lock").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "stopped at once" in err
    assert "Traceback" not in err
    assert not checkpoint.list_checkpoints(run / "checkpoints")


def test_the_second_interrupt_stops_at_once_and_keeps_what_was_saved(flags: Flags, tmp_path: Path) -> None:
    """In the middle of a step of a hundred micro-batches, which takes seconds."""
    run = tmp_path / "run"
    process = start_example(
        flags(sequences=100, micro_sequences=1, tokens=10 * 3200, checkpoint_every=1, validate_every=100)
    )
    wait_for(process, run, 1)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert err.splitlines()[-1].endswith("stopped at once; what the last checkpoint holds is kept")
    assert "Traceback" not in err
    assert "to continue" not in out
    (saved,) = checkpoint.list_checkpoints(run / "checkpoints")
    assert checkpoint.read_state(saved)["step"] == 1
