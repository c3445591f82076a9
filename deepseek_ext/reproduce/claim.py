"""What a reproduced claim consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .figures import Draw

Mark = Literal["shown", "not shown at this size"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to run a claim's experiment."""

    out: Path
    """Folder of all results; training runs are kept in its `runs`."""
    quick: bool = False
    """Seconds instead of minutes: exercises the code, and shows little."""
    data: tuple[str, ...] = ()
    """As of TrainConfig."""
    threads: int | None = None
    """As of TrainConfig."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What an experiment found."""

    shown: bool
    """Whether the pass mark was reached."""
    sentence: str
    """The numbers that decide, in words."""
    header: list[str]
    rows: list[list[str]]
    """Of the table that is printed."""
    numbers: dict[str, Any] = field(default_factory=dict)
    """What result.json holds besides."""
    draw: Draw
    panels: int = 1

    @property
    def mark(self) -> Mark:
        return "shown" if self.shown else "not shown at this size"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A statement of the paper, the experiment, and what counts as having shown it."""

    name: str
    says: str
    section: str
    passes: str
    measure: Callable[[Settings], Finding]
