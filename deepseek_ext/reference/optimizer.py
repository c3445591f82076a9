"""AdamW with FP32 weights and moments that may be kept in BF16 (DeepSeek-V3, section 3.3.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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

    g = grad_scale * grad;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
    p = (1 - lr weight_decay) p - lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
    """
    if not params:
        return
    g = torch._foreach_mul(grads, grad_scale) if grad_scale != 1.0 else grads
    m = [old.to(p.dtype) for old, p in zip(exp_avgs, params, strict=True)]
    v = [old.to(p.dtype) for old, p in zip(exp_avg_sqs, params, strict=True)]
    torch._foreach_mul_(m, beta1)
    torch._foreach_add_(m, g, alpha=1 - beta1)
    torch._foreach_mul_(v, beta2)
    torch._foreach_addcmul_(v, g, g, value=1 - beta2)
    denominator = torch._foreach_sqrt(v)
    torch._foreach_div_(denominator, math.sqrt(1 - beta2**step))
    torch._foreach_add_(denominator, eps)
    if weight_decay != 0.0:
        torch._foreach_mul_(params, 1 - lr * weight_decay)
    torch._foreach_addcdiv_(params, m, denominator, value=-lr / (1 - beta1**step))
    torch._foreach_copy_(exp_avgs, m)
    torch._foreach_copy_(exp_avg_sqs, v)
