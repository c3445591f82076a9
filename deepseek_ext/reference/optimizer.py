"""AdamW with FP32 weights and moments that may be kept in BF16 (DeepSeek-V3, section 3.3.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

PIECE = 1 << 17  # elements, 512 KiB in FP32: what the formula reads again is then still in the cache


@torch.no_grad()
def adamw_step_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float = 1.0,
) -> None:
    """One step on every tensor of the lists, in the parameters' dtype; the moments are rounded when stored.

    The numbers computed from lr, the betas and step are rounded to that dtype once; no multiplication and
    addition is fused. Large tensors are worked on in pieces that stay in the cache.
    """
    rate = lr / (1 - beta1**step)
    correction = 1 / math.sqrt(1 - beta2**step)  # a factor: torch divides by a number as it likes
    for tensors in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        for param, grad, exp_avg, exp_avg_sq in zip(*map(_pieces, tensors), strict=True):
            g = grad * grad_scale
            m = exp_avg.to(g.dtype) * beta1 + g * (1 - beta1)
            v = exp_avg_sq.to(g.dtype) * beta2 + g * (1 - beta2) * g
            root = v.double().sqrt().to(v.dtype)  # torch's own FP32 square root may be an ulp off
            param.mul_(1 - lr * weight_decay).sub_(m * rate / (root * correction + eps))
            exp_avg.copy_(m)
            exp_avg_sq.copy_(v)


def _pieces(x: Tensor) -> tuple[Tensor, ...]:
    """x cut along its first dimension into views of about PIECE elements."""
    x = torch.atleast_1d(x)
    row = max(1, x.numel() // max(1, x.shape[0]))
    return x.split(max(1, PIECE // row))
