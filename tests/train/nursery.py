"""Runs as processes of their own that start at once: forked from one that has imported everything.

The parent writes a request a line, and reads an answer a line:
    ["start", flags, file, environment, preparation]   the process's id; both its streams go to the file, and
                                                      preparation names a function to call first, with its
                                                      arguments: ["module", "function", argument...]
    ["poll", id]                            null while it runs, then the exit code or minus the signal
What is left at the end is killed.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Nursery:
    """The process that forks, as seen from a test; use it as a context."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def start(
        self,
        flags: list[str],
        output: Path,
        environment: dict[str, str] | None = None,
        preparation: tuple[object, ...] = (),
    ) -> Life:
        """`deepseek-ext train` with these flags, both its streams going to a file."""
        output.write_bytes(b"")
        pid = self.ask("start", flags, str(output), environment or {}, preparation)
        return Life(pid, output, self)

    def ask(self, *request: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@dataclass(slots=True)
class Life:
    """One process of a run."""

    pid: int
    output: Path
    nursery: Nursery

    def said(self) -> str:
        return self.output.read_text()

    def wait(self) -> int:
        """How it ended."""
        self.reaches(lambda: False)
        return int(self.nursery.ask("poll", self.pid))

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)

    def reaches(self, condition: Callable[[], bool]) -> bool:
        """Waits for the condition; False if the process ended before."""
        deadline = time.monotonic() + 300
        while not condition():
            assert time.monotonic() < deadline, f"hangs: {self.said()}"
            if self.nursery.ask("poll", self.pid) is not None:
                return False
            time.sleep(0.0005)
        return True


def _serve() -> None:

    from deepseek_ext import cli
    from deepseek_ext.train import TrainConfig

    ended: dict[int, int | None] = {}
    for line in sys.stdin:
        what, *rest = json.loads(line)
        if what == "start":
            flags, output, environment, preparation = rest
            answer = os.fork()
            if answer == 0:
                file = os.open(output, os.O_WRONLY)
                for stream in (1, 2):
                    os.dup2(file, stream)
                sys.stdin.close()
                os.environ.update(environment)
                if preparation:
                    module, function, *arguments = preparation
                    getattr(importlib.import_module(module), function)(*arguments)
                raise SystemExit(cli.train(TrainConfig(), flags, program="deepseek-ext train"))
            ended[answer] = None
        else:
            (pid,) = rest
            if ended[pid] is None:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    ended[pid] = os.waitstatus_to_exitcode(status)
            answer = ended[pid]
        print(json.dumps(answer), flush=True)
    for pid in [pid for pid, how in ended.items() if how is None]:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _serve()
