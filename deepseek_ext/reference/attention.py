"""Causal attention with its matrix of scores; in FP64 for FP64 inputs, else in FP32."""

from __future__ import annotations

import torch
from torch import Tensor


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, starts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(scale q k^T) v over positions starts .. own, and the logarithm of each row's sum."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    at = torch.arange(q.shape[2], device=q.device)
    seen = at <= at[:, None]
    if starts is not None:
        seen = seen & (at >= starts[:, None, :, None])
    scores = (q.to(wide) @ k.to(wide).mT * scale).masked_fill(~seen, float("-inf"))
    return (scores.softmax(-1) @ v.to(wide)).to(v.dtype), scores.logsumexp(-1)


def causal_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    scale: float,
    starts: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Gradients of q, k and v by autograd; out and logsumexp are not needed for them here."""
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    with torch.enable_grad():
        return torch.autograd.grad(causal_attention(q, k, v, scale, starts)[0], (q, k, v), grad)
