"""The run directory: held by one process, removed while in use, of another version, or tampered with."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from nursery import Nursery  # type: ignore[import-not-found]
from planted import Planted, sign_again, torch_saved  # type: ignore[import-not-found]
from same_run import assert_same_run, assert_same_tensors, rows  # type: ignore[import-not-found]
from tiny_run import Flags  # type: ignore[import-not-found]
from tiny_trainer import train  # type: ignore[import-not-found]

from deepseek_ext import cli
from deepseek_ext.train import TrainConfig, checkpoint
from deepseek_ext.train.data import prepare_data
from deepseek_ext.train.trainer import Trainer


def complete(run: Path) -> list[Path]:
    return checkpoint.list_checkpoints(run / "checkpoints")


@pytest.fixture
def finished(uninterrupted: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of a finished run, where this test's flags point."""
    shutil.copytree(uninterrupted[0], tmp_path / "run")
    return tmp_path / "run"


def test_a_second_process_is_refused_and_the_first_goes_on(
    uninterrupted: tuple[Path, str], flags: Flags, nursery: Nursery, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first = nursery.start(flags(checkpoint_every=4), tmp_path / "first.txt")
    assert first.reaches((run / "metrics.jsonl").exists), first.said()
    first.kill(signal.SIGSTOP)  # or it would end before the others have begun
    for resume in ("auto", "never"):
        second = nursery.start(flags(resume=resume), tmp_path / f"{resume}.txt")
        assert second.wait() == 2
        assert second.said() == (
            f"deepseek-ext train: --run-dir {run} is in use by process {first.pid}; stop that one, or choose "
            "another folder\n"
        )
    first.kill(signal.SIGCONT)
    assert first.wait() == 0
    assert_same_run(run, uninterrupted[0])
    assert not (tmp_path / "run.1").exists()


def test_the_current_folder_cannot_be_moved_aside(
    flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis.txt").write_text("mine")
    assert cli.train(TrainConfig(), flags(run_dir=".", resume="never"), program="test") == 2
    said = "test: --resume never cannot move . aside; choose a --run-dir with a name\n"
    assert capsys.readouterr().err == said
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_removed_while_running_is_made_anew(
    config: TrainConfig, nursery: Nursery, flags: Flags
) -> None:
    trainer = Trainer(config, prepare_data(config))
    step = trainer.train_step

    def watched() -> dict[str, Any]:
        if trainer.step == 5:
            shutil.rmtree(config.run_dir)
        return step()

    trainer.train_step = watched  # type: ignore[method-assign]
    outcome, said = train(trainer)
    assert outcome.saved
    assert f"WARNING: {config.run_dir / 'metrics.jsonl'} was removed; it begins anew at step 6" in said
    assert [row["step"] for row in rows(config.run_dir)] == [6, 7, 8, 9, 10]
    assert [path.name for path in complete(config.run_dir)] == [f"step-{n:08d}" for n in (6, 8, 10)]
    # What is there can be gone on with.
    before = {name: tensor.clone() for name, tensor in trainer._tensors().items()}
    shutil.rmtree(complete(config.run_dir)[-1])
    assert cli.train(TrainConfig(), flags(checkpoint_every=2, prompts=()), program="test") == 0
    again = Trainer(config, prepare_data(config))
    again.resume(complete(config.run_dir)[-1], checkpoint.read_state(complete(config.run_dir)[-1]))
    assert again.step == 10
    for name, tensor in again._tensors().items():
        assert torch.equal(tensor, before[name]), name


def test_a_clock_that_goes_backwards_changes_nothing(
    finished: Path, uninterrupted: tuple[Path, str], flags: Flags, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints are ordered by their steps, whatever the times of their files."""
    shutil.rmtree(complete(finished)[-1])
    now = time.time()
    for age, folder in enumerate(complete(finished)):
        for path in (*folder.iterdir(), folder):
            os.utime(path, (now - 10**6 * age,) * 2)
    clock = iter(range(10**9, 0, -1))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    assert cli.train(TrainConfig(), flags(checkpoint_every=4, prompts=()), program="test") == 0
    assert_same_run(finished, uninterrupted[0])


def test_a_checkpoint_of_another_format_is_refused_and_kept(
    finished: Path, flags: Flags, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = complete(finished)[-1]
    state = json.loads((newest / "state.json").read_text())
    (newest / "state.json").write_text(json.dumps(state | {"format": 2, "invention": [1, 2]}))
    sign_again(newest)
    before = sorted(finished.rglob("*"))
    assert cli.train(TrainConfig(), flags(), program="test") == 2
    assert capsys.readouterr().err == (
        f"test: {newest} has format 2, this version of the package reads 1; use the version that wrote it, "
        "or --resume never\n"
    )
    assert cli.main(["generate", str(finished), "--prompt", "a"]) == 2
    assert "has format 2" in capsys.readouterr().err
    assert sorted(finished.rglob("*")) == before


def test_the_same_step_may_be_damaged_twice(
    finished: Path, uninterrupted: tuple[Path, str], flags: Flags
) -> None:
    for _ in range(2):
        (complete(finished)[-1] / "state.json").write_text("{}")
        assert cli.train(TrainConfig(), flags(checkpoint_every=4, prompts=()), program="test") == 0
    assert_same_run(finished, uninterrupted[0])
    names = [path.name for path in (finished / "checkpoints").iterdir() if path.name.endswith(".damaged")]
    assert names == ["step-00000010.damaged"]


IN_CHECKPOINT = ["__0_0.distcp", ".metadata", "state.json", "SHA256SUMS"]


@pytest.mark.parametrize("name", [*IN_CHECKPOINT, "../../tokenizer.json", "../../metrics.jsonl"])
def test_no_file_of_a_run_can_carry_code(
    name: str,
    finished: Path,
    uninterrupted: tuple[Path, str],
    flags: Flags,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With fitting checksums too: commands name the file, or use the checkpoint before, and never run it."""
    mark, newest = tmp_path / "planted", complete(finished)[-1]
    assert {path.name for path in newest.iterdir()} == set(IN_CHECKPOINT)
    payload = pickle.dumps(Planted(mark))
    if name == "__0_0.distcp":  # in the place of every tensor, where .metadata now says that it ends
        metadata = pickle.loads((newest / ".metadata").read_bytes())
        content, planted = bytearray((newest / name).read_bytes()), torch_saved(Planted(mark))
        for info in metadata.storage_data.values():
            assert info.length >= len(planted)
            content[info.offset : info.offset + len(planted)] = planted
            info.length = len(planted)
        (newest / ".metadata").write_bytes(pickle.dumps(metadata))
        payload = bytes(content)
    (newest / name).write_bytes(payload)
    if name != "SHA256SUMS":
        sign_again(newest)
    assert cli.main(["generate", str(finished), "--prompt", "a", "--max-new-tokens", "1"]) in (0, 2)
    code = cli.train(TrainConfig(), flags(checkpoint_every=4, prompts=()), program="test")
    assert not mark.exists()
    assert "Traceback" not in (err := capsys.readouterr().err)
    if name == "../../tokenizer.json":
        assert code == 2
        assert "tokenizer.json is not a tokenizer.json that can be read" in err
    elif name == "../../metrics.jsonl":
        assert code == 0
    else:
        assert code == 0
        assert f"damaged checkpoint: {newest}" in err
        assert name != "__0_0.distcp" or "Weights only load failed" in err
        assert_same_tensors(finished, uninterrupted[0])
    pickle.loads(pickle.dumps(Planted(mark)))  # it would have
    assert mark.exists()
