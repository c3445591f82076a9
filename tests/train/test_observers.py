"""TensorBoard, Weights & Biases and the profiler: what they are told, and that a run goes on without them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_run import Flags  # type: ignore[import-not-found]

from deepseek_ext import cli
from deepseek_ext.train import TrainConfig
from deepseek_ext.train.loggers import scalars
from deepseek_ext.train.metrics import read_metrics
from deepseek_ext.train.observers import Observer, Observers
from deepseek_ext.train.profiling import window


def train(args: list[str]) -> int:
    return cli.train(TrainConfig(), args, program="test")


def test_scalars_leave_out_what_is_none() -> None:
    row = {"step": 3, "tokens": 9, "loss": 2.0, "by": [1.0, 2], "none": None, "not_finite": False}
    assert dict(scalars(row)) == {"loss": 2.0, "by/0": 1.0, "by/1": 2.0, "not_finite": 0.0}


def test_tensorboard_goes_on_without_steps_of_before(flags: Flags, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pytest.importorskip("torch.utils.tensorboard")
    assert train([*flags(tokens=512, checkpoint_every=3), "--log", "tensorboard"]) == 0
    run = tmp_path / "run"
    shutil.rmtree(run / "checkpoints" / "step-00000004")  # as if the run had died after step 4
    assert train([*flags(tokens=640), "--log", "tensorboard"]) == 0
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    metrics = read_metrics(run / "metrics.jsonl")
    for name in ("loss", "max_vio_by_router/0", "share_of_peak"):
        assert [event.step for event in events.Scalars(name)] == [1, 2, 3, 4, 5]
    logged = [event.value for event in events.Scalars("loss")]
    assert logged == pytest.approx([row["loss"] for row in metrics], rel=1e-6)


class FakeWandB:
    """Keeps what it is told as the service does: a step that is there already is ignored."""

    def __init__(self) -> None:
        self.runs: dict[str, Any] = {}

    def init(self, **settings: Any) -> Any:
        assert settings["resume"] == "allow"
        assert settings["config"]["depth"] == 2
        run = self.runs.setdefault(settings["id"], SimpleNamespace(rows={}, step=0, finished=0))

        def log(figures: dict[str, float], step: int) -> None:
            assert step >= run.step
            run.rows[step] = figures
            run.step = step + 1

        run.log = log
        run.finish = lambda: setattr(run, "finished", run.finished + 1)
        return run


def test_wandb_has_every_step_once(flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", service)
    log = ["--log", "wandb"]
    assert train([*flags(tokens=512), *log]) == 0
    (run,) = service.runs.values()
    run.step = 6  # as if the run had died after step 5
    assert train([*flags(tokens=768), *log]) == 0
    assert sorted(run.rows) == [1, 2, 3, 4, 6]
    assert run.finished == 2
    losses = {row["step"]: row["loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")}
    assert all(run.rows[step]["loss"] == losses[step] for step in run.rows)
    assert train([*flags(tokens=256, resume="never"), *log]) == 0
    assert len(service.runs) == 2  # another run, another id


@pytest.mark.parametrize(
    ("package", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")]
)
def test_a_missing_package_is_one_sentence(
    flags: Flags,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    package: str,
    module: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    run = tmp_path / "run"
    assert train([*flags(), "--log", package]) == 2
    err = capsys.readouterr().err
    assert err == (
        f"test: --log {package} needs the package {package}, which is not installed; "
        f"run: pip install 'deepseek-ext[{package}]'\n"
    )
    assert not run.exists()  # said before anything else is done


def test_profile_names_our_operators_and_changes_nothing(
    flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = {"precision": "fp8", "tokens": 512}
    assert train(flags(**args, run_dir=tmp_path / "plain")) == 0
    capsys.readouterr()
    assert train(flags(**args, profile="2:2")) == 0
    out = capsys.readouterr().out
    trace = json.loads((tmp_path / "run" / "profile" / "steps-2-3.json").read_text())
    names = [event.get("name") for event in trace["traceEvents"]]
    assert {"step 2", "step 3", "deepseek_ext::gemm", "deepseek_ext::grouped_gemm"} <= set(names)
    assert "step 1" not in names
    assert "step 4" not in names
    table = out.split("steps-2-3.json", 1)[1].splitlines()[1:12]
    assert table[0].split() == ["operator", "ms", "a", "step", "share", "calls", "a", "step"]
    operators = [line[2:48].strip() for line in table[1:]]
    assert len(operators) == 10
    names.append("(Python between operators)")
    assert all(any(str(name).startswith(operator) for name in names) for operator in operators)
    plain, profiled = (
        [row["loss"] for row in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("plain", "run")
    )
    assert plain == profiled


def test_a_run_that_ends_early_writes_what_was_profiled(flags: Flags, tmp_path: Path) -> None:
    assert train(flags(tokens=256, profile="2:50")) == 0
    assert [path.name for path in (tmp_path / "run" / "profile").iterdir()] == ["steps-2-2.json"]


def test_a_profile_of_steps_that_never_come_is_said(
    flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(flags(tokens=256, profile="30:5")) == 0
    said = capsys.readouterr().out
    assert "WARNING: no profile, since this run computed none of the steps 30 to 34\n" in said
    assert not (tmp_path / "run" / "profile").exists()


@pytest.mark.parametrize("text", ["", "5", "0:3", "3:0", "a:b", "1:2:3"])
def test_a_window_that_means_nothing(flags: Flags, capsys: pytest.CaptureFixture[str], text: str) -> None:
    with pytest.raises(ValueError, match="--profile must be FIRST:COUNT"):
        window(text)
    assert train([*flags(), f"--profile={text}"]) == 2
    assert "--profile must be FIRST:COUNT" in capsys.readouterr().err


def test_wandb_without_a_key_is_one_sentence(
    flags: Flags, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def init(**_: Any) -> Any:
        raise RuntimeError("api_key not configured (no-tty).\nMore of it")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    assert train([*flags(), "--log", "wandb"]) == 2
    assert capsys.readouterr().err == (
        "test: --log wandb: api_key not configured (no-tty); run `wandb login`, or set WANDB_MODE=offline "
        "and sync later\n"
    )


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("no connection")])
def test_what_fails_in_an_observer_silences_it_and_not_the_run(error: Exception) -> None:
    class Full(Observer):
        calls = 0

        def see(self, row: dict[str, Any]) -> None:
            self.calls += 1
            raise error

        def close(self) -> None:
            raise error

    said: list[str] = []
    full = Full()
    with Observers([full, Observer()], said.append) as observers:
        observers.see({"step": 1})
        observers.see({"step": 2})
    assert full.calls == 1
    with Observers([full], said.append):
        pass
    assert said == 2 * [f"WARNING: Full stops, the run goes on ({error})"]
