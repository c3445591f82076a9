"""metrics.jsonl: one JSON object a step, cut back on resume to where the checkpoint stood."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


class MetricsFile:
    """Appends one object a step, whole and flushed, so that a crash tears at most the last line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a")  # noqa: SIM115  open for the length of the run

    def write(self, row: dict[str, Any]) -> None:
        # JSON has no NaN: a loss that was none is null.
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def cut_back(path: Path, step: int) -> None:
    """Replaces the file by one that holds its rows up to `step`; a torn or foreign line ends the file."""
    if not path.exists():
        return
    kept = [line for row, line in _rows(path) if row["step"] <= step]
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a torn last line is left out."""
    return [row for row, _ in _rows(path)]


def _rows(path: Path) -> list[tuple[dict[str, Any], str]]:
    rows = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            text = line.decode()
            row = json.loads(text)
            step = row["step"]
        except (ValueError, KeyError, TypeError):
            break
        if not text.endswith("\n") or not isinstance(step, int):
            break
        rows.append((row, text))
    return rows
