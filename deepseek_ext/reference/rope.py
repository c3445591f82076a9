"""Rotary position embedding of all heads (arXiv:2104.09864); in FP64 for FP64 inputs, else in FP32."""

from __future__ import annotations

import torch
from torch import Tensor


def rope_heads(q: Tensor, kv: Tensor, k_rope: Tensor, rotation: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """q [B, T, N * (P + R)] with the last R columns of its heads rotated, and keys [B, N, T, P + R]."""
    plain = q.shape[-1] // heads - k_rope.shape[-1]
    q_heads, kv_heads = q.unflatten(-1, (heads, -1)), kv.unflatten(-1, (heads, -1))
    q_rope = rotate(q_heads[..., plain:], rotation[:, None])
    shared = rotate(k_rope, rotation).unsqueeze(2).expand(-1, -1, heads, -1)
    keys = torch.cat([kv_heads[..., :plain], shared], -1)
    return torch.cat([q_heads[..., :plain], q_rope], -1).flatten(-2), keys.transpose(1, 2)


def rope_heads_backward(
    grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, rotation: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q [B, N, T, P + R], kv [B, T, N * (P + V)] and k_rope [B, T, R]."""
    plain, back = grad_q.shape[-1] - 2 * rotation.shape[-1], rotation.conj()
    grad_q = torch.cat([grad_q[..., :plain], rotate(grad_q[..., plain:], back)], -1)
    total = _wide(grad_k[:, :0, :, plain:]).sum(1)
    for head in range(grad_k.shape[1]):
        total = total + _wide(grad_k[:, head, :, plain:])
    grad_kv = torch.cat([grad_k[..., :plain], grad_v], -1).transpose(1, 2).flatten(-2)
    return grad_q, grad_kv, rotate(total.to(grad_k.dtype), back)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """The pairs of x's last dimension as complex numbers times rotation [..., R / 2], in x's dtype."""
    real, imag = _wide(x).unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = rotation.real, rotation.imag
    turned = torch.stack([real * cosine - imag * sine, real * sine + imag * cosine], -1)
    return turned.flatten(-2).to(x.dtype)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
