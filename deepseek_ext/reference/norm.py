"""Root-mean-square norm (arXiv:1910.07467); in FP64 for FP64 inputs, else in FP32."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x / sqrt(mean(x^2) + eps) * weight in x's dtype, and the factor of each row [...]."""
    rstd = (_wide(x).square().mean(-1) + eps).rsqrt()
    return rms_norm_again(x, weight, rstd), rstd


def rms_norm_again(x: Tensor, weight: Tensor, rstd: Tensor) -> Tensor:
    """The first of them from the second."""
    return (_wide(x) * rstd[..., None] * weight).to(x.dtype)


def rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x, in its dtype, and of weight."""
    normed = _wide(x) * rstd[..., None]
    product = _wide(grad) * normed
    along = (product * weight).mean(-1, keepdim=True)
    grad_x = (_wide(grad) * weight - normed * along) * rstd[..., None]
    return grad_x.to(x.dtype), product.flatten(0, -2).sum(0) if x.dim() > 1 else product


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
