"""--profile FIRST:COUNT: torch.profiler over some steps of a run."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from .observers import Observer

_ROWS = 10
_PYTHON = "(Python between operators)"


def window(text: str) -> range:
    """The steps that FIRST:COUNT means; raises ValueError for anything else."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or int(match[1]) < 1 or int(match[2]) < 1:
        raise ValueError(
            f"--profile must be FIRST:COUNT, the first step and how many, such as 20:5, got {text!r}"
        )
    return range(int(match[1]), int(match[1]) + int(match[2]))


class Profiler(Observer):
    """Writes a Chrome trace of `steps` to a folder, and says which operators took most of the time."""

    def __init__(self, steps: range, folder: Path, say: Callable[[str], None]) -> None:
        self.steps = steps
        self.folder = folder
        self.say = say
        self._profile: Any = None
        self._seen: list[int] = []

    def around(self, step: int) -> AbstractContextManager[object]:
        if step not in self.steps:
            return super().around(step)
        if self._profile is None:
            cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profile = profile(activities=[ProfilerActivity.CPU, *cuda])
            self._profile.start()
        self._seen.append(step)
        return record_function(f"step {step}")

    def see(self, row: dict[str, Any]) -> None:
        if row["step"] == self.steps[-1]:
            self.close()

    def close(self) -> None:
        """Writes what was seen; a run may end before the last of the steps, or before the first."""
        if self._profile is None:
            if not self._seen:
                steps = f"{self.steps[0]} to {self.steps[-1]}"
                self.say(f"WARNING: no profile, since this run computed none of the steps {steps}")
            return
        done, self._profile = self._profile, None
        done.stop()
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"steps-{self._seen[0]}-{self._seen[-1]}.json"
        done.export_chrome_trace(str(path))
        self.say(f"profile of steps {self._seen[0]} to {self._seen[-1]}: {path} (open it in ui.perfetto.dev)")
        for line in _table(done, len(self._seen)):
            self.say(line)


def _table(profiled: Any, steps: int) -> list[str]:
    """The operators with the most time of their own, as lines; time of a step in none of them is Python's."""
    on_device = torch.cuda.is_available()
    times: dict[str, tuple[float, int]] = {}
    for event in profiled.key_averages():
        name = _PYTHON if event.key.startswith("step ") else event.key
        time = event.self_device_time_total if on_device else event.self_cpu_time_total
        before, count = times.get(name, (0.0, 0))
        times[name] = before + time, count + event.count
    total = sum(time for time, _ in times.values()) or 1
    lines = [f"  {'operator':46} {'ms a step':>10} {'share':>7} {'calls a step':>13}"]
    for key, (time, count) in sorted(times.items(), key=lambda item: -item[1][0])[:_ROWS]:
        lines.append(
            f"  {key[:46]:46} {time / 1e3 / steps:10.2f} {100 * time / total:5.1f} % {count / steps:13.1f}"
        )
    return lines
