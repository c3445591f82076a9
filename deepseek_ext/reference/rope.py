"""Rotary position embedding of all heads (arXiv:2104.09864); in FP64 for FP64 inputs, else in FP32."""

from __future__ import annotations

import torch
from torch import Tensor


def rope_heads_(q: Tensor, kv: Tensor, k_rope: Tensor, rotation: Tensor, heads: int) -> Tensor:
    """Rotates the last R columns of q's heads [B, T, N * (P + R)]; returns the keys [B, N, T, P + R]."""
    width = q.shape[-1] // heads
    plain = width - k_rope.shape[-1]
    q_rope = q.unflatten(-1, (heads, width))[..., plain:]
    q_rope.copy_(rotate(q_rope, rotation[:, None]))
    k_plain = kv.unflatten(-1, (heads, kv.shape[-1] // heads))[..., :plain]
    shared = rotate(k_rope, rotation).unsqueeze(2).expand(-1, -1, heads, -1)
    return torch.cat([k_plain, shared], -1).transpose(1, 2)


def rope_heads_backward_(
    grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, rotation: Tensor
) -> tuple[Tensor, Tensor]:
    """Rotates q's gradient [B, N, T, P + R] back; returns those of kv [B, T, N * (P + V)] and k_rope."""
    plain, back = grad_q.shape[-1] - 2 * rotation.shape[-1], rotation.conj()
    grad_q[..., plain:] = rotate(grad_q[..., plain:], back)
    k_plain, k_rope = grad_k[..., :plain], grad_k[..., plain:]
    total = _wide(k_rope[:, :0]).sum(1)
    for head in range(k_rope.shape[1]):
        total = total + _wide(k_rope[:, head])
    grad_kv = torch.cat([k_plain, grad_v], -1).transpose(1, 2).flatten(-2)
    return grad_kv, rotate(total.to(grad_k.dtype), back)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """The pairs of x's last dimension as complex numbers times rotation [..., R / 2], in x's dtype."""
    real, imag = _wide(x).unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = rotation.real, rotation.imag
    turned = torch.stack([real * cosine - imag * sine, real * sine + imag * cosine], -1)
    return turned.flatten(-2).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
