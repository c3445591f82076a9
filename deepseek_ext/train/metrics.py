"""metrics.jsonl and telemetry.jsonl: JSON lines by step, cut back on resume to the checkpoint's."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


class MetricsFile:
    """Appends one object at a time, whole and at once, so that a crash tears at most the last line.

    Rows that cannot be written wait in memory for the next one; a file that was removed is begun anew.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = self._open()
        self._waiting = b""
        self._failed = False

    def write(self, row: dict[str, Any]) -> str | None:
        """Appends a row; returns a warning, once, if that began to fail or if the file was removed."""
        # JSON has no NaN: a loss that was none is null.
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self._waiting += json.dumps(clean).encode() + b"\n"
        failed, self._failed = self._failed, False
        try:
            removed = not self.path.exists()
            if removed:
                file = self._open()
                os.close(self._file)
                self._file = file
            while self._waiting:
                self._waiting = self._waiting[os.write(self._file, self._waiting) :]
        except OSError as error:
            self._failed = True
            problem = f"{self.path} cannot be written ({error.strerror}); its rows wait in memory"
            return None if failed else problem
        return f"{self.path} was removed; it begins anew at step {row['step']}" if removed else None

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)


def cut_back(path: Path, step: int) -> None:
    """Replaces the file by one that holds its rows up to `step`; a torn or foreign line ends the file."""
    if not path.exists():
        return
    kept = [line for row, line in _rows(path) if row["step"] <= step]
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
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
