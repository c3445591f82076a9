"""cross_entropy_: loss, gradient and choice in place, against torch's operators that do the same in FP32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek_ext import ops


def composition(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_p = torch.log_softmax(logits.float(), -1)
    losses = log_p.gather(1, targets)
    grads = log_p.exp_().scatter_add_(1, targets, torch.full_like(losses, -1.0)).to(logits.dtype)
    return losses, grads, logits.argmax(-1)


@pytest.mark.parametrize(("rows", "vocabulary"), [(512, 4096), (64, 129280)], ids=["small", "V3"])
def test_cross_entropy(rows: int, vocabulary: int, threads: int, versus: Callable[..., Any]) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, vocabulary, generator=rng).bfloat16()
    targets = torch.randint(vocabulary, (rows,), generator=rng)
    written, column = logits.clone(), targets[:, None]
    # What the call finds is what the call before left, which changes nothing in its work.
    versus(
        lambda: ops.cross_entropy_(written, targets),
        {"torch": lambda: composition(logits, column)},
        bytes_moved=2 * logits.nbytes,
        compiled=lambda: composition(logits, column),
    )
