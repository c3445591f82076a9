"""The progress line: it renews itself on a terminal; elsewhere there are plain lines, at intervals."""

from __future__ import annotations

import sys
import time
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
        self._console = Console(file=stream or sys.stdout, highlight=False, soft_wrap=True)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._next_plain = 0.0

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    @property
    def elapsed(self) -> float:
        """Seconds of this run, those before a resume included."""
        return self.seconds_before + time.perf_counter() - self.started

    def show(self, row: dict[str, Any]) -> None:
        """Renews the line; elsewhere than on a terminal prints one at most every ten seconds."""
        if self._live:
            self._live.update(Text(self.line(row)), refresh=True)
        elif time.perf_counter() >= self._next_plain or row["tokens"] >= self.total_tokens:
            self.say(self.line(row))
            self._next_plain = time.perf_counter() + _SECONDS_BETWEEN_PLAIN_LINES

    def say(self, text: str) -> None:
        """Prints a line above the progress line."""
        self._console.print(text, markup=False)

    def line(self, row: dict[str, Any]) -> str:
        """The text for one step."""
        rate = row["tokens_per_second"]
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
            f"{rate:,.0f} tokens/s",
            f"{rate * self.flops_per_token / 1e9:,.0f} GFLOP/s "
            f"({100 * rate * self.flops_per_token / self.peak.flops:.0f} %)",
            f"MaxVio {row['max_vio']:.2f}",
        ]
        if row["mtp_acceptance"] is not None:
            parts.append(f"MTP {100 * row['mtp_acceptance']:.0f} %")
        parts.append(f"{clock(self.elapsed)} < {clock(remaining)}")
        return "  ".join(parts)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
