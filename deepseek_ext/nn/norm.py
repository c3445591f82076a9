"""Root-mean-square norm as a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import ops
from .recompute import Recomputed


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension [..., size], FP32 inside, in x's dtype."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.recomputed(x).value

    def recomputed(self, x: Tensor) -> Recomputed:
        """The same for layers that are to keep x and not the result."""
        value, rstd = ops.rms_norm(x, self.weight, self.eps)
        return Recomputed(value, (x.detach(), self.weight.detach(), rstd), ops.rms_norm_again)
