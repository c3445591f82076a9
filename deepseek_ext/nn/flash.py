"""Causal attention without a matrix of scores, by torch's kernels, forward and backward called by name.

Called by name, because the layer keeps its output in another format and its operands not at all, which
scaled_dot_product_attention with its own autograd cannot know.

Shapes: B sequences, N heads, T tokens, D = head width of q and k, V = that of v.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_aten = torch.ops.aten


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, starts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(scale q k^T) v over earlier tokens and the own: q, k [B, N, T, D], v [B, N, T, V].

    starts: int32 [B, T], the first position that each may attend to (`Context.document_starts`); None: 0.
    Returns the result [B, N, T, V] and the logarithm of each row's sum of exponentials, in FP32, which
    backward needs.
    """
    width = v.shape[-1]
    q, k, v = _equally_wide(q, k, v)
    causal, mask = starts is None, None if starts is None else _mask(starts, q)
    if not q.is_cuda:
        out, logsumexp = _aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, causal, attn_mask=mask, scale=scale
        )
    elif q.dtype == torch.float32 or mask is not None:  # the flash kernel knows 16 bits only, and no mask
        out, logsumexp, *_ = _aten._scaled_dot_product_efficient_attention(
            q, k, v, mask, True, 0.0, causal, scale=scale
        )
    else:
        out, logsumexp, *_ = _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True, scale=scale)
    return out.narrow(-1, 0, width), logsumexp


def causal_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    scale: float,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from that of `out`, with the arguments and results of forward."""
    width, value_width = q.shape[-1], v.shape[-1]
    q, k, v = _equally_wide(q, k, v)
    grad, out = (F.pad(t, (0, v.shape[-1] - value_width)) for t in (grad, out))
    operands = grad, q, k, v
    causal, mask = starts is None, None if starts is None else _mask(starts, q)
    if not q.is_cuda:
        grads = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *operands, out, logsumexp, 0.0, causal, attn_mask=mask, scale=scale
        )
    else:
        unused = torch.empty((), dtype=torch.int64, device=q.device)  # a random state, for dropout
        if q.dtype == torch.float32 or mask is not None:
            wanted = [True] * 3 + [False]
            grads = _aten._scaled_dot_product_efficient_attention_backward(
                *operands, mask, out, logsumexp, unused, unused, 0.0, wanted, causal, scale=scale
            )[:3]
        else:
            tokens = q.shape[2]
            grads = _aten._scaled_dot_product_flash_attention_backward(
                *operands, out, logsumexp, None, None, tokens, tokens, 0.0, True, unused, unused, scale=scale
            )
    grad_q, grad_k, grad_v = grads
    return grad_q.narrow(-1, 0, width), grad_k.narrow(-1, 0, width), grad_v.narrow(-1, 0, value_width)


def _mask(starts: Tensor, q: Tensor) -> Tensor:
    """What is added to scores: 0 from each position's start to itself, elsewhere -inf; [B, N, T, T]."""
    # CUDA's kernel wants rows that begin at multiples of 16.
    keys = torch.arange(-(-q.shape[2] // 16) * 16, dtype=torch.int32, device=q.device)
    seen = (keys >= starts[:, :, None]) & (keys <= keys[: q.shape[2], None])
    mask = torch.zeros((), dtype=q.dtype, device=q.device).masked_fill(~seen, float("-inf"))
    return mask[:, None, :, : q.shape[2]].expand(-1, q.shape[1], -1, -1)


def _equally_wide(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The kernels want equal head widths; zeros on the narrower side change no result."""
    width = max(q.shape[-1], v.shape[-1])
    q, k, v = (F.pad(t, (0, width - t.shape[-1])) if t.shape[-1] < width else t for t in (q, k, v))
    return q, k, v
