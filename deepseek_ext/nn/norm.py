"""Root-mean-square norm, computed in FP32 (arXiv:1910.07467)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops.derivatives import first_order_only
from .recompute import Recomputed


class _RMSNorm(torch.autograd.Function):
    """Saves the input in its own dtype and one number a row, and returns that number beside the result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x32 = x.float()
        mean_square = torch.linalg.vector_norm(x32, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        rstd = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, rstd)
        ctx.mark_non_differentiable(rstd)
        return _scale(x, rstd, weight), rstd

    @staticmethod
    @first_order_only("RMSNorm")
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor, Tensor, None]:
        x, weight, rstd = ctx.saved_tensors
        normed = x.float() * rstd
        product = grad.float() * normed
        grad_weight = product.flatten(0, -2).sum(0)
        # The part of grad * weight along the normalised row would change its length, which is fixed.
        along = product.mul_(weight).mean(-1, keepdim=True)
        grad_x = torch.mul(grad, weight).sub_(normed.mul_(along)).mul_(rstd)
        return grad_x.to(x.dtype), grad_weight, None


def _scale(x: Tensor, rstd: Tensor, weight: Tensor) -> Tensor:
    return (x.float() * rstd).mul_(weight).to(x.dtype)


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
        value, rstd = _RMSNorm.apply(x, self.weight, self.eps)
        return Recomputed(value, (x.detach(), rstd, self.weight.detach()), _scale)
