"""Training: data, schedules, optimizer, checkpoints and the loop."""

from . import recipes
from .config import TrainConfig
from .optimizer import AdamW, build_optimizer
from .run import load_run, run
from .schedules import Schedules, deepseek_v3
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
