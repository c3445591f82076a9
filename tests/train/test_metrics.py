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
