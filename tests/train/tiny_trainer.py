"""The tiny run inside this process: its trainer, and what it says."""

from __future__ import annotations

import io

from deepseek_ext.train.environment import Peak
from deepseek_ext.train.progress import Progress
from deepseek_ext.train.trainer import Outcome, Stop, Trainer


def quiet_progress(trainer: Trainer) -> Progress:
    return Progress(
        total_tokens=trainer.schedules.total,
        flops_per_token=trainer.size.flops_per_token,
        peak=Peak(1e12, "a stated peak"),
        stream=io.StringIO(),
    )


def train(trainer: Trainer) -> tuple[Outcome, str]:
    trainer.config.run_dir.mkdir(exist_ok=True)
    progress = quiet_progress(trainer)
    outcome = trainer.train(progress, Stop())
    return outcome, progress._console.file.getvalue()  # type: ignore[attr-defined]
