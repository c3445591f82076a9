"""deepseek-ext plot: pictures of runs made by hand, and what it says where there is nothing to draw."""

from __future__ import annotations

import json
import re
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from deepseek_ext import cli
from deepseek_ext.plot import _medians, _smooth, _thin

pytest.importorskip("matplotlib")


def run_of(folder: Path, steps: int = 40, *, telemetry: int | None = None, **changes: Any) -> Path:
    """A run directory with metrics of `steps` steps of 100 tokens, and telemetry of every so-manieth."""
    folder.mkdir(parents=True)
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(1, steps + 1):
            row = {
                **{"step": step, "tokens": 100 * step, "loss": 7 - step / 20, "bits_per_byte": 3 - step / 40},
                **{"lr": 1e-3, "grad_norm": 1.0, "tokens_per_second": 900.0, "max_vio": 1 / step},
                **{"max_vio_by_router": [1 / step, 0.5 / step], "mtp_acceptance": None},
                **({"val_bits_per_byte": 3 - step / 40} if step % 10 == 0 else {}),
                **changes,
            }
            file.write(json.dumps(row) + "\n")
    if telemetry:
        with open(folder / "telemetry.jsonl", "w") as file:
            for step in range(telemetry, steps + 1, telemetry):
                at = {"step": step, "tokens": 100 * step}
                for operand in ("activation", "weight", "gradient", "cache"):
                    for layer in ("model.layers.1.o_proj", "model.layers.2.o_proj"):
                        found = {"layer": layer, "operand": operand, "underflow": 1e-4}
                        file.write(json.dumps(at | found) + "\n")
                for layer in (1, 2):
                    load = {"layer": f"model.layers.{layer}.mlp.gate", "load": [step, 3, 2, 0]}
                    file.write(json.dumps(at | load) + "\n")
    return folder


def words(svg: Path) -> set[str]:
    return set(re.findall(r"<text[^>]*>([^<]*)</text>", svg.read_text()))


def refusal(capsys: pytest.CaptureFixture[str], *args: Path | str) -> str:
    assert cli.main(["plot", *map(str, args)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path / "run", telemetry=5)
    assert cli.main(["plot", str(run)]) == 0
    assert capsys.readouterr().out == f"wrote {run / 'plot.png'}\n"
    picture = (run / "plot.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert struct.unpack(">II", picture[16:24]) == (2000, 1480)


def test_what_the_panels_are_called(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", telemetry=5)
    assert cli.main(["plot", str(run), "--out", str(tmp_path / "a.svg")]) == 0
    titles = {"Training loss (nats per token)", "MaxVio, worst layer", "Learning rate", "Tokens per second"}
    assert titles | {"Load of each expert over the mean of its layer", "layer 1", "layer 2"} <= words(
        tmp_path / "a.svg"
    )
    assert {"activation", "weight", "gradient"} <= words(tmp_path / "a.svg")


def test_several_runs_with_and_without_telemetry(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / "fp8", telemetry=5), run_of(tmp_path / "bf16"), run_of(tmp_path / "fp32", 3)]
    assert cli.main(["plot", *map(str, runs), "--out", str(tmp_path / "a.svg")]) == 0
    found = words(tmp_path / "a.svg")
    assert {"fp8", "bf16", "fp32", "layer 1", "router 2"} <= found
    assert "fp8: Load of each expert over the mean of its layer" in found
    assert "bf16: MaxVio of each router (--telemetry N shows experts)" in found


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [str(run_of(tmp_path / name / "run")) for name in "ab"]
    assert cli.main(["plot", *runs, "--out", str(tmp_path / "a.svg")]) == 0
    assert set(runs) <= words(tmp_path / "a.svg")


@pytest.mark.parametrize(
    "changes",
    [{"loss": None, "grad_norm": None}, {"max_vio_by_router": [], "max_vio": 0.0}, {"bits_per_byte": None}],
    ids=["not finite", "no router", "no text"],
)
def test_runs_that_lack_something(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert cli.main(["plot", str(run_of(tmp_path / "run", 1, **changes))]) == 0


def test_a_run_that_died_while_it_wrote_telemetry(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", telemetry=5)
    telemetry = run / "telemetry.jsonl"
    telemetry.write_text(telemetry.read_text()[:-20])
    assert cli.main(["plot", str(run), "--out", str(tmp_path / "a.svg")]) == 0
    assert {"layer 1", "layer 2"} <= words(tmp_path / "a.svg")
    telemetry.write_text(telemetry.read_text().split("\n", 1)[0] + "\n")  # one operand of the first step
    assert cli.main(["plot", str(run), "--out", str(tmp_path / "a.svg")]) == 0
    assert "activation" in words(tmp_path / "a.svg")


def test_a_line_in_the_middle_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[7] = lines[7][:20]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert cli.main(["plot", str(run)]) == 0
    assert capsys.readouterr().err == f"{run / 'metrics.jsonl'}: line 8 cannot be read; drawn up to there\n"


def test_nothing_to_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "name at least one run directory" in refusal(capsys)
    assert "no metrics.jsonl; name the run directory" in refusal(capsys, tmp_path)
    for content in ("", '{"step": 1, "lo', "text\n", "{}\n", '{"step": 1}\n', "\x00\x00\n"):
        (tmp_path / "metrics.jsonl").write_text(content)
        assert "holds no step that can be read" in refusal(capsys, tmp_path)


def test_nowhere_to_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path / "run", 3)
    missing = tmp_path / "missing" / "a.png"
    assert f"{missing} cannot be written (No such file or directory)" in refusal(
        capsys, run, "--out", missing
    )
    assert "a.xyz must end in .png, .svg or .pdf" in refusal(capsys, run, "--out", tmp_path / "a.xyz")


def test_without_matplotlib(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = (
        "deepseek-ext plot: drawing needs the package matplotlib, which is not installed; run: pip install "
    )
    assert refusal(capsys, run_of(tmp_path / "run")) == message + "'deepseek-ext[plot]'\n"


def test_smoothing_is_unbiased_and_follows() -> None:
    assert _smooth([3.0] * 200) == pytest.approx([3.0] * 200)
    assert _smooth([1.0, 2.0, 3.0]) == [1, 2, 3]  # too short to smooth
    ramp = _smooth([float(n) for n in range(1000)])
    assert 0 < 999 - ramp[-1] < 25


def test_medians_pass_over_slow_steps() -> None:
    rates = [100.0] * 50
    rates[::5] = [10.0] * 10
    assert _medians(rates) == [100.0] * 50


@pytest.mark.parametrize("length", [1, 1999, 2000, 2001, 123_457])
def test_thinning_keeps_the_last(length: int) -> None:
    xs, ys = _thin(list(range(length)), [2 * n for n in range(length)])
    assert len(xs) <= 2000
    assert xs[-1] == length - 1
    assert ys == [2 * x for x in xs]
    assert length > 2000 or len(xs) == length
