"""The progress line: it renews itself on a terminal; elsewhere there are plain lines, at intervals.

A terminal that is narrower than the line gets as many lines as it needs, broken between figures. Where lines
cannot be renewed (no terminal, TERM=dumb) there are plain ones. No colour is used.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from .environment import Peak

_SECONDS_BETWEEN_PLAIN_LINES = 10.0


class Progress:
    """Shows the rows of a run as they come; use it as a context."""

    def __init__(
        self,
        *,
        total_tokens: int,
        flops_per_token: float,
        peak: Peak,
        seconds_before: float = 0.0,
        tokens_before: int = 0,
        stream: TextIO | None = None,
    ) -> None:
        self.total_tokens = total_tokens
        self.flops_per_token = flops_per_token
        self.peak = peak
        self.seconds_before = seconds_before
        self.tokens_before = tokens_before
        self.started = time.perf_counter()
        stream = stream or sys.stdout
        # Not what rich takes for a terminal: FORCE_COLOR makes a file one.
        renewable = stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        self._console = Console(file=stream, force_terminal=renewable, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False) if renewable else None
        self._next_plain = 0.0

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            with suppress(OSError):
                self._live.stop()

    @property
    def elapsed(self) -> float:
        """Seconds of this run, those before a resume included."""
        return self.seconds_before + time.perf_counter() - self.started

    def show(self, row: dict[str, Any]) -> None:
        """Renews the line; elsewhere than on a terminal prints one at most every ten seconds."""
        if self._live:
            text = "\n".join(fold(self.figures(row), self._console.width - 1))
            with suppress(OSError):  # a terminal that was closed, say
                self._live.update(Text(text), refresh=True)
        elif time.perf_counter() >= self._next_plain or row["tokens"] >= self.total_tokens:
            self.say("  ".join(self.figures(row)))
            self._next_plain = time.perf_counter() + _SECONDS_BETWEEN_PLAIN_LINES

    def say(self, text: str) -> None:
        """Prints a line above the progress line; a log that cannot be written stops no run."""
        with suppress(OSError):
            self._console.print(text, markup=False, soft_wrap=True)

    def speed(self, row: dict[str, Any]) -> dict[str, float]:
        """What belongs into a row of metrics and only the run as a whole knows: its clock and its machine."""
        flops = row["tokens_per_second"] * self.flops_per_token
        return {
            "gflops_per_second": flops / 1e9,
            "share_of_peak": flops / self.peak.flops,
            "seconds": self.elapsed,
        }

    def figures(self, row: dict[str, Any]) -> list[str]:
        """The texts for one step; row is one of metrics, with what `speed` adds."""
        done = row["tokens"] - self.tokens_before
        spent = time.perf_counter() - self.started
        left = max(0, self.total_tokens - row["tokens"])  # the last step may go past the budget
        remaining = left * spent / done if done > 0 else 0.0
        parts = [
            f"step {row['step']}",
            f"{100 * min(1.0, row['tokens'] / self.total_tokens):.1f} %",
            f"loss {row['loss']:.3f}",
            f"{row['bits_per_byte']:.3f} bits/byte",
            f"lr {row['lr']:.2e}",
            f"norm {row['grad_norm']:.2f}",
            f"{row['tokens_per_second']:,.0f} tokens/s",
            f"{row['gflops_per_second']:,.0f} GFLOP/s "
            f"({100 * row['share_of_peak']:.0f} % of {self.peak.short})",
            f"MaxVio {row['max_vio']:.2f}",
        ]
        if row["mtp_acceptance"] is not None:
            parts.append(f"MTP {100 * row['mtp_acceptance']:.0f} %")
        parts.append(f"{clock(self.elapsed)}, {clock(remaining)} left")
        return parts


def fold(parts: Sequence[str], width: int) -> list[str]:
    """The parts, two spaces apart, in lines of at most `width` characters; a longer part is cut."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 2 + len(part) <= width:
            lines[-1] += "  " + part
        else:
            lines.append(part[:width])
    return lines


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
