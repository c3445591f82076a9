"""Whole runs of the example: they learn, resume bit for bit, and survive what happens to their files."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
from same_run import assert_same_run, assert_same_tensors, rows  # type: ignore[import-not-found]
from tiny_run import Flags, start_example  # type: ignore[import-not-found]

from deepseek_ext import cli
from deepseek_ext.train import TrainConfig, checkpoint
from deepseek_ext.train.metrics import read_metrics


def test_it_learns_and_reports(uninterrupted: tuple[Path, str]) -> None:
    run, out = uninterrupted
    metrics = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(1, 11))
    assert [row["tokens"] for row in metrics] == [128 * n for n in range(1, 11)]
    wanted = {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "max_vio"}
    assert all(wanted <= row.keys() for row in metrics)
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 0.5
    validated = [row["step"] for row in metrics if "val_bits_per_byte" in row]
    assert validated == [3, 6, 9, 10]
    assert metrics[-1]["val_bits_per_byte"] < metrics[2]["val_bits_per_byte"]
    for phrase in (
        "zlib -9 on the same text",
        "peak memory",
        "MaxVio",
        "MTP acceptance",
        "sample",
        "manifest",
    ):
        assert phrase in out
    assert f"{metrics[-1]['val_bits_per_byte']:.4f} bits per byte" in out
    assert f"deepseek-ext generate {run} --prompt" in out


def test_an_interrupted_run_goes_on_bit_for_bit(uninterrupted: tuple[Path, str], flags: Flags) -> None:
    """SIGTERM in the middle: the step is finished, saved, exit 0; the rest equals the uninterrupted run."""
    args = flags(checkpoint_every=4)
    run = Path(args[args.index("--run-dir") + 1])
    process = start_example(args)
    while len(read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    stopped = json.loads((checkpoint.list_checkpoints(run / "checkpoints")[-1] / "state.json").read_text())[
        "step"
    ]
    assert 2 <= stopped < 10
    assert f"interrupted after step {stopped}, which is saved; to continue: python" in out
    assert "--resume" not in out.rsplit("to continue:", 1)[1]
    assert [row["step"] for row in rows(run)] == list(range(1, stopped + 1))

    assert cli.train(TrainConfig(), args, program="test") == 0
    whole = uninterrupted[0]
    # A validation that the stop cut short is the one thing that may lack.
    ours, theirs = rows(run), rows(whole)
    for a, b in zip(ours, theirs, strict=True):
        assert a == {k: b[k] for k in a}
    assert_same_tensors(run, whole)


def test_a_killed_run_goes_on_from_its_checkpoint(
    uninterrupted: tuple[Path, str], flags: Flags, tmp_path: Path
) -> None:
    """As after a power cut: rows beyond the checkpoint, a torn line, a half-written checkpoint."""
    whole, _ = uninterrupted
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    checkpoints = checkpoint.list_checkpoints(run / "checkpoints")
    assert [path.name for path in checkpoints] == ["step-00000004", "step-00000008", "step-00000010"]
    shutil.rmtree(checkpoints[-1])
    checkpoints[0].rename(run / "checkpoints" / "step-00000012.tmp-77")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "lo')
    assert cli.train(TrainConfig(), flags(checkpoint_every=4), program="test") == 0
    assert_same_run(run, whole)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000008", "step-00000010"]


@pytest.mark.parametrize("precision", ["fp8", "bf16"])
def test_low_precision_goes_on_bit_for_bit(precision: str, flags: Flags, tmp_path: Path) -> None:
    changes = {"precision": precision, "checkpoint_every": 5}
    assert cli.train(TrainConfig(), flags(**changes), program="test") == 0
    run = tmp_path / "copy"
    shutil.copytree(tmp_path / "run", run)
    shutil.rmtree(checkpoint.list_checkpoints(run / "checkpoints")[-1])
    assert cli.train(TrainConfig(), flags(**changes, run_dir=run), program="test") == 0
    assert_same_run(run, tmp_path / "run")


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    uninterrupted: tuple[Path, str], flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, _ = uninterrupted
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    data = run / "checkpoints" / "step-00000010" / "__0_0.distcp"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    assert cli.train(TrainConfig(), flags(checkpoint_every=4), program="test") == 0
    captured = capsys.readouterr()
    assert "step-00000010: __0_0.distcp differs from its checksum; using the one before" in captured.err
    assert "resuming from" in captured.out
    assert "step-00000008: step 8" in captured.out
    assert_same_run(run, whole)


def test_never_begins_anew_and_keeps_the_old(
    uninterrupted: tuple[Path, str], flags: Flags, tmp_path: Path
) -> None:
    whole, _ = uninterrupted
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    assert cli.train(TrainConfig(), flags(checkpoint_every=4, resume="never"), program="test") == 0
    assert_same_run(run, whole)
    assert_same_run(tmp_path / "run.1", whole)


def test_a_finished_run_says_so_and_can_be_extended(
    uninterrupted: tuple[Path, str], flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted[0], run)
    assert cli.train(TrainConfig(), flags(), program="test") == 0
    assert "bits per byte; zlib" in capsys.readouterr().out
    assert len(rows(run)) == 10
    assert cli.train(TrainConfig(), flags(tokens=1536), program="test") == 0
    assert "the run was planned for 1280" in capsys.readouterr().out
    assert [row["step"] for row in rows(run)] == list(range(1, 13))


def test_another_run_in_the_folder_is_refused(
    uninterrupted: tuple[Path, str], flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(uninterrupted[0], run)
    assert cli.train(TrainConfig(), flags(hidden_size=128), program="test") == 2
    err = capsys.readouterr().err
    assert "holds another run (" in err
    assert "--hidden-size 64 there, 128 here" in err
    assert err.count("\n") == 1
    text = tmp_path / "other.txt"
    text.write_text("other text\n" * 400)
    assert cli.train(TrainConfig(), flags(data=text), program="test") == 2
    assert "the text has changed since the run" in capsys.readouterr().err


def test_minutes_fix_a_budget_that_resuming_keeps(
    flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = flags(minutes=0.005)
    assert cli.train(TrainConfig(), args, program="test") == 0
    assert "--minutes 0.005: ten steps ran at" in capsys.readouterr().out
    before = rows(tmp_path / "run")
    assert before[-1]["tokens"] % 128 == 0
    assert cli.train(TrainConfig(), args, program="test") == 0
    assert rows(tmp_path / "run") == before
    assert cli.train(TrainConfig(), flags(minutes=0.5), program="test") == 2
    assert "this run's length is already fixed" in capsys.readouterr().err


def test_generate_and_eval_read_a_run(
    uninterrupted: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = uninterrupted
    assert cli.main(["eval", str(run)]) == 0
    score = read_metrics(run / "metrics.jsonl")[-1]["val_bits_per_byte"]
    assert f"validation {score:.4f} bits per byte" in capsys.readouterr().out
    assert cli.main(["generate", str(run), "--prompt", "the ", "--max-new-tokens", "48"]) == 0
    text = capsys.readouterr().out.rstrip("\n")
    assert text.startswith("the ")
    assert repr(text) in out  # the sample at the end of the run


def test_eval_of_a_text_that_changed_says_so(
    flags: Flags, text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(text_folder, data)
    assert cli.train(TrainConfig(), flags(data=data, tokens=256), program="test") == 0
    capsys.readouterr()
    assert cli.main(["eval", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().err == ""
    (data / "more.txt").write_text("another text\n")
    assert cli.main(["eval", str(tmp_path / "run")]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("validation ")
    assert "the text has changed since the run began (manifest " in captured.err


def test_micro_batches_give_the_same_step(
    uninterrupted: tuple[Path, str], flags: Flags, tmp_path: Path
) -> None:
    assert cli.train(TrainConfig(), flags(micro_sequences=1), program="test") == 0
    for ours, theirs in zip(rows(tmp_path / "run"), rows(uninterrupted[0]), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-3)
        assert ours["max_vio"] == pytest.approx(theirs["max_vio"], abs=0.5)
