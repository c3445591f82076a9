"""The claims of the paper: each experiment from end to end at its smallest, and what holds at any size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from deepseek_ext import cli
from deepseek_ext.reproduce import CLAIMS, ReproduceOptions, reproduce
from deepseek_ext.reproduce.claim import Settings
from deepseek_ext.reproduce.memory import measure as measure_memory
from deepseek_ext.reproduce.outliers import error, with_outliers
from deepseek_ext.reproduce.retile import errors, spread_out

ALWAYS_SHOWN = {"accumulation", "outliers", "retile", "memory"}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for n in range(60):
        (folder / f"note{n}.txt").write_text(
            "".join(f"the value of item {k} in list {n} is {k * n % 7}.\n" for k in range(12))
        )
    return folder


@pytest.mark.parametrize("name", CLAIMS)
def test_each_claim_runs_and_leaves_its_results(
    name: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mark, the exit code and the files agree; what needs no training is shown even at this size."""
    code = cli.main(
        ["reproduce", name, "--quick", "--threads", "1", "--out", str(tmp_path), "--data", str(text)]
    )
    found = json.loads((tmp_path / name / "result.json").read_text())
    assert code == {"shown": 0, "not shown at this size": 3}[found["mark"]]
    assert (tmp_path / name / "result.txt").read_text().count("\n") >= 4
    said = capsys.readouterr().out
    assert CLAIMS[name].says in said
    assert f"{found['mark']}: {found['found']}" in said
    if name in ALWAYS_SHOWN:
        assert found["mark"] == "shown"
    figure = tmp_path / name / "figure.png"
    if not figure.exists():
        pytest.skip("matplotlib is not installed: no figure")
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_are_numbers_and_a_remark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert reproduce(ReproduceOptions(claims=("retile",), quick=True, out=tmp_path)) == 0
    assert sorted(path.name for path in (tmp_path / "retile").iterdir()) == ["result.json", "result.txt"]
    assert 'install "deepseek-ext[plot]"' in capsys.readouterr().out


def test_a_claim_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce", "everything"]) == 2
    assert "no claim is called 'everything'; choose from accumulation, " in capsys.readouterr().err


def test_powers_of_two_retile_without_a_second_rounding() -> None:
    x = spread_out(256, 256, 1.0)
    assert errors(x, True, True)[0] < 1e-5  # not 0: a code that moves into the subnormals may lose a bit
    assert errors(x, False, False)[0] > 0.01


def test_without_outliers_the_tiles_do_not_matter() -> None:
    """The effect comes from the outliers, not from the way that the error is counted."""
    x, ordinary = with_outliers(256, 256, 2.0)
    found = [error(x, ordinary, tiling) for tiling in ("tensor", "128x128", "1x128")]
    assert max(found) < 1.1 * min(found)


def test_memory_notices_a_tensor_too_many(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from deepseek_ext.nn.block import Block

    settings = Settings(out=tmp_path, quick=True)
    assert measure_memory(settings).shown
    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, x, context: forward(self, torch.sin(x), context))
    assert not measure_memory(settings).shown
