"""Training runs to compare with one another: each by the ordinary Trainer, kept on the disk, never run twice.

A run's folder is named by everything that decides its numbers, so the same question finds the same run, and
an interrupted one goes on from its checkpoint. A finished run keeps its metrics alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..train import checkpoint
from ..train.config import TrainConfig
from ..train.corpus import load_corpus
from ..train.data import prepare_data
from ..train.environment import Peak, matmul_peak
from ..train.folder import held
from ..train.metrics import cut_back, read_metrics
from ..train.progress import Progress
from ..train.trainer import RunStopped, Stop, Trainer

Row = dict[str, Any]
_HELD_OUT_WINDOWS = 32
_NEVER = 10**9  # steps: longer than any run


class Interrupted(RuntimeError):
    """The user stopped a run; the same command goes on from where it stood."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to train, among those compared."""

    name: str
    """Of its folder, its row and its curve."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of TrainConfig that differ from the common configuration."""
    prepare: Callable[[Trainer], None] | None = None
    """Alters the trainer each time that it is built."""
    at_start: Callable[[Trainer], None] | None = None
    """Alters the model once, before the first step."""
    at_end: Callable[[Trainer], Row] | None = None
    """Measures the trained model; what it returns, which json can hold, joins the last row."""


class _ComparedRun(Trainer):
    """Validates on the first windows of the held-out text alone, at its end, and with the MTP modules."""

    at_end: Callable[[Trainer], Row] | None = None

    @torch.no_grad()
    def validate(self, progress: Progress, stop: Stop) -> dict[str, Any]:
        tokens, targets = (part[:_HELD_OUT_WINDOWS] for part in self.data.validation)
        self.model.eval()
        loss = self.model.loss(tokens, targets)
        self.model.train()
        return {
            "held_out_loss": loss.main.item(),
            "held_out_acceptance": [accepted.item() for accepted in loss.acceptance],
            **(self.at_end(self) if self.at_end else {}),
        }


class Runs:
    """Trains variants of one configuration below a folder.

    config: what the variants share; its run_dir is the folder.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self._manifest = load_corpus(config.data).manifest_hash()
        self._peak: Peak | None = None
        if config.threads is not None:
            torch.set_num_threads(config.threads)

    def train(self, variant: Variant, seed: int) -> list[Row]:
        """One row of metrics a step, from the disk where the run was finished before.

        The last row also has held_out_loss and held_out_acceptance (one a depth). A run whose numbers cease
        to be finite is an outcome too: the steps it did not reach have loss None, and its last row no more.
        Raises Interrupted after SIGINT or SIGTERM, with the run's state saved, and ValueError for settings
        that cannot work.
        """
        config = self._config(variant, seed)
        diverged = config.run_dir / "diverged"
        rows = read_metrics(path) if (path := config.run_dir / "metrics.jsonl").exists() else []
        if not diverged.exists() and (not rows or rows[-1]["tokens"] < config.tokens):
            print(f"{variant.name}, seed {seed}: training in {config.run_dir}", flush=True)
            try:
                self._run(config, variant)
            except RunStopped as stopped:
                print(f"{variant.name}, seed {seed} diverged: {stopped}", flush=True)
                diverged.touch()
            rows = read_metrics(path)
        shutil.rmtree(config.run_dir / "checkpoints", ignore_errors=True)
        return _completed(rows, config.tokens or 0)

    def _config(self, variant: Variant, seed: int) -> TrainConfig:
        config = replace(self.config, **variant.changes, seed=seed).derived()
        decides = {k: v for k, v in config.to_json().items() if k not in ("run_dir", "threads")}
        text = json.dumps([variant.name, self._manifest, decides], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        return replace(
            config,
            run_dir=self.config.run_dir / f"{variant.name.replace(', ', '-').replace(' ', '-')}-{digest}",
        )

    def _run(self, config: TrainConfig, variant: Variant) -> None:
        with held(config.run_dir, anew=False), Stop().listening() as stop:
            self._train(config, variant, stop)

    def _train(self, config: TrainConfig, variant: Variant, stop: Stop) -> None:
        trainer = _ComparedRun(config, prepare_data(config))
        trainer.at_end = variant.at_end
        if variant.prepare:
            variant.prepare(trainer)
        saved = checkpoint.list_checkpoints(config.run_dir / "checkpoints")
        if saved:
            trainer.resume(saved[-1], checkpoint.read_state(saved[-1]))
        else:
            cut_back(config.run_dir / "metrics.jsonl", 0)
            if variant.at_start:
                variant.at_start(trainer)
        self._peak = self._peak or matmul_peak()
        progress = Progress(
            total_tokens=trainer.schedules.total,
            flops_per_token=trainer.size.flops_per_token,
            peak=self._peak,
            seconds_before=trainer.seconds,
            tokens_before=trainer.tokens,
        )
        with progress:
            outcome = trainer.train(progress, stop)
        if not outcome.finished:
            raise Interrupted(f"interrupted after step {trainer.step}; the same command goes on from there")


def _completed(rows: list[Row], tokens: int) -> list[Row]:
    """The rows of a run, those that it did not reach because it diverged included."""
    rows = list(rows)
    while rows[-1]["tokens"] < tokens:
        later = {"tokens": rows[-1]["tokens"] + rows[0]["tokens"], "step": rows[-1]["step"] + 1}
        rows.append({"loss": None, "held_out_loss": math.nan, "held_out_acceptance": [], **later})
    return rows


def common(config: TrainConfig, **changes: Any) -> TrainConfig:
    """A configuration as compared runs have it: no samples, one checkpoint, validated at the end alone."""
    return replace(
        config, validate_every=_NEVER, prompts=(), keep_last=1, checkpoint_every=100, **changes
    ).derived()


def losses_of(rows: list[Row]) -> list[float]:
    """The main model's training loss at each step; NaN where it was not finite."""
    return [math.nan if row["loss"] is None else row["loss"] for row in rows]
