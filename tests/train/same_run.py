"""Two runs held against each other, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_run import WALL_CLOCK  # type: ignore[import-not-found]

from deepseek_ext.train import checkpoint
from deepseek_ext.train.metrics import read_metrics


def rows(run: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in row.items() if k not in WALL_CLOCK} for row in read_metrics(run / "metrics.jsonl")
    ]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint: weights, router biases, moments, RNG."""
    path = checkpoint.list_checkpoints(run / "checkpoints")[-1]
    reader = checkpoint._Reader(path)
    metadata = reader.read_metadata()
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.state_dict_metadata.items()
    }
    checkpoint.load_tensors(path, tensors)
    return tensors


def assert_same_run(a: Path, b: Path) -> None:
    assert rows(a) == rows(b)
    assert_same_tensors(a, b)


def assert_same_tensors(a: Path, b: Path) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    assert any("exp_avg_sq" in name for name in ours)
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
