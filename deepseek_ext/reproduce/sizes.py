"""The sizes that claims are trained at: as large as two cores do in minutes."""

from __future__ import annotations

from ..train.config import TrainConfig
from .claim import Settings
from .runs import common


def seeds(settings: Settings) -> range:
    return range(2 if settings.quick else 3)


def small(settings: Settings, config: TrainConfig) -> TrainConfig:
    """`config` at width 128 in 3 layers for 300 steps of 1024 tokens; --quick: width 64 for a few steps."""
    size: dict[str, int] = (
        {"depth": 2, "hidden_size": 64, "experts": 8, "vocab_size": 384, "seq_len": 32, "sequences": 4}
        if settings.quick
        else {
            "depth": 3,
            "hidden_size": 128,
            "experts": 32,
            "vocab_size": 1024,
            "seq_len": 128,
            "sequences": 8,
        }
    )
    steps = 8 if settings.quick else 300
    return common(
        config,
        **size,
        tokens=steps * size["seq_len"] * size["sequences"],
        data=settings.data,
        threads=settings.threads,
        run_dir=settings.out / "runs",
    )
