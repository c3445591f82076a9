"""Training: data, schedules, optimizer, checkpoints and the loop."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import recipes
from .config import TrainConfig
from .optimizer import AdamW, build_optimizer
from .schedules import Schedules, deepseek_v3

if TYPE_CHECKING:
    from .session import load_run, run
    from .trainer import Trainer

__all__ = [
    "AdamW",
    "Schedules",
    "TrainConfig",
    "Trainer",
    "build_optimizer",
    "deepseek_v3",
    "load_run",
    "recipes",
    "run",
]


_LOADED_WHEN_ASKED_FOR = {"Trainer": "trainer", "load_run": "session", "run": "session"}


def __getattr__(name: str) -> Any:
    """Leaves out, for a loop of one's own, what checkpoints load: 50 MiB of torch's distributed package."""
    module = _LOADED_WHEN_ASKED_FOR.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
