"""Metrics for TensorBoard and Weights & Biases, beside metrics.jsonl; a resumed run goes on where it was."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from .observers import Observer

_NO_SCALARS = ("step", "tokens")


class TensorBoard(Observer):
    """Event files in a run's folder `tensorboard`; raises ValueError where the package lacks."""

    def __init__(self, run_dir: Path, settings: dict[str, Any], *, after_step: int) -> None:
        """after_step: the step that the run goes on from; what is there of later ones is purged."""
        module = _module("tensorboard")
        self._writer = module.SummaryWriter(
            str(run_dir / "tensorboard"), purge_step=after_step + 1 if after_step else None
        )
        if not after_step:
            self._writer.add_text("config", f"```json\n{json.dumps(settings, indent=1)}\n```")

    def see(self, row: dict[str, Any]) -> None:
        for name, value in scalars(row):
            self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._writer.close()


class WandB(Observer):
    """One run of Weights & Biases for one run directory; raises ValueError where the package lacks.

    Its id lies in the run directory. Steps that are computed again after a resume have the same numbers, and
    are not logged twice.
    """

    def __init__(self, run_dir: Path, settings: dict[str, Any]) -> None:
        wandb = _module("wandb")
        identity = run_dir / "wandb.id"
        if not identity.exists():
            identity.write_text(uuid.uuid4().hex)
        try:
            self._run = wandb.init(
                project="deepseek-ext",
                name=run_dir.name,
                id=identity.read_text(),
                resume="allow",
                dir=str(run_dir),
                config=settings,
            )
        except Exception as error:  # no key, no network
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
            raise ValueError(
                f"--log wandb: {reason}; run `wandb login`, or set WANDB_MODE=offline and sync later"
            ) from error
        self._logged = self._run.step  # the number of the first step that it has not yet

    def see(self, row: dict[str, Any]) -> None:
        if row["step"] >= self._logged:
            self._run.log({"tokens": row["tokens"], **dict(scalars(row))}, step=row["step"])

    def close(self) -> None:
        self._run.finish()


def scalars(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The figures of a row of metrics, each entry of a list by its number."""
    for name, value in row.items():
        entries = (
            {f"{name}/{n}": v for n, v in enumerate(value)} if isinstance(value, list) else {name: value}
        )
        for entry, figure in entries.items():
            if isinstance(figure, (int, float)) and name not in _NO_SCALARS:
                yield entry, float(figure)


def check_installed(packages: Iterable[str]) -> None:
    """Raises ValueError for the first of tensorboard and wandb that is asked for and cannot be imported."""
    for package in packages:
        _module(package)


def _module(package: str) -> Any:
    try:
        return import_module("torch.utils.tensorboard" if package == "tensorboard" else package)
    except ImportError as error:
        raise ValueError(
            f"--log {package} needs the package {package}, which is not installed; "
            f"run: pip install 'deepseek-ext[{package}]'"
        ) from error
