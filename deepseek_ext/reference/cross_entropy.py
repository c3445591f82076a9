"""Cross-entropy of rows of logits, its gradient, and each row's likeliest class."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -100


def cross_entropy_(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and choices; logits become softmax - onehot. In FP64 for FP64 logits, else in FP32."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    counted = (targets != IGNORED)[:, None]
    classes = targets.clamp_min(0)[:, None]
    log_p = wide.log_softmax(-1)
    losses = -(log_p.gather(1, classes) * counted)[:, 0]
    choices = wide.argmax(-1)
    onehot = torch.zeros_like(wide).scatter_(1, classes, 1.0)
    logits.copy_((log_p.exp() - onehot) * counted)
    return losses, choices
