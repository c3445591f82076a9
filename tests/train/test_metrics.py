"""metrics.jsonl: JSON on every line, and cut back to where a run goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from deepseek_ext.train.metrics import MetricsFile, cut_back, read_metrics


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "metrics.jsonl"
    with MetricsFile(path) as metrics:
        for step in range(1, 6):
            metrics.write({"step": step, "loss": 7.0 - step})
    return path


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_rows_are_readable_at_once(tmp_path: Path) -> None:
    with MetricsFile(tmp_path / "metrics.jsonl") as metrics:
        metrics.write({"step": 1, "loss": 2.5})
        assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.5}]


def test_no_nan_in_json(tmp_path: Path) -> None:
    with MetricsFile(tmp_path / "metrics.jsonl") as metrics:
        metrics.write({"step": 1, "loss": math.nan, "grad_norm": math.inf})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null, "grad_norm": null}\n'


@pytest.mark.parametrize("step", [0, 3, 5, 9])
def test_cut_back_to_a_step(path: Path, step: int) -> None:
    lines = path.read_text().splitlines()
    cut_back(path, step)
    assert path.read_text().splitlines() == lines[:step]


@pytest.mark.parametrize("tail", ['{"step": 6, "lo', '{"step": 6}', "\x00\x00\n", "[6]\n", "null\n"])
def test_a_torn_last_line_goes(path: Path, tail: str) -> None:
    with open(path, "a") as file:
        file.write(tail)
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4, 5]
    cut_back(path, 4)
    with MetricsFile(path) as metrics:
        metrics.write({"step": 5})
    assert steps(path) == [1, 2, 3, 4, 5]


def test_half_a_character_is_a_torn_line(path: Path) -> None:
    with open(path, "ab") as file:
        file.write('{"step": 6, "text": "é"}'.encode()[:-3])
    cut_back(path, 6)
    assert steps(path) == [1, 2, 3, 4, 5]


def test_no_file_is_no_error(tmp_path: Path) -> None:
    cut_back(tmp_path / "metrics.jsonl", 3)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_file_that_was_moved_is_begun_anew(path: Path) -> None:
    with MetricsFile(path) as metrics:
        path.parent.rename(path.parent.with_name("elsewhere"))
        warning = metrics.write({"step": 6})
        assert warning == f"{path} was removed; it begins anew at step 6"
        assert metrics.write({"step": 7}) is None
    assert steps(path) == [6, 7]


def test_a_folder_that_cannot_be_made_again_is_tried_again(path: Path) -> None:
    with MetricsFile(path) as metrics:
        path.unlink()
        path.parent.rename(path.parent.with_name("elsewhere"))
        path.parent.write_text("a file in its place")
        assert "its rows wait in memory" in (metrics.write({"step": 6}) or "")
        assert metrics.write({"step": 7}) is None
        path.parent.unlink()
        metrics.write({"step": 8})
    assert steps(path) == [6, 7, 8]
