"""Causal attention on a GPU, by torch's own kernels.

Its flash kernel reads 16-bit heads of one width and no mask; its memory-efficient kernel also FP32, other
widths and a mask. torch prepares their operands in scaled_dot_product_attention, which returns no logarithms
of sums; so they are called below it, and what it prepares is prepared here. Both read through the pointers
and strides they are given, and not all that they rely on do they check: heads a multiple of 16 bytes wide,
side by side for each token (the memory-efficient backward finds a row of `out` by width and heads alone), at
an address that 16 divides; a mask with rows a multiple of 16 numbers apart; logarithms of sums in rows of a
multiple of 32.
"""

from __future__ import annotations

import math
import os

import torch
import torch.nn.functional as F
from torch import Tensor

_aten = torch.ops.aten
_WIDEST_FLASH = 192  # beyond, its backward does not run on every GPU
_WIDTH_STEP = 8  # 16 bytes of 16-bit numbers; FP32 needs half as many
_MASK_STEP = 16
_SUMS_STEP = 32
_ADDRESS_STEP = 16  # bytes


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """What causal_attention returns."""
    tokens, width = q.shape[2], v.shape[3]
    if 0 in q.shape[:3]:
        return new_heads(v), q.new_empty(q.shape[:3], dtype=torch.float32)
    flash = _is_for_flash(q, v, starts)
    q, k, v = _widened(flash, q, k, v)
    if flash:
        out, sums, *_ = _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True, scale=scale)
    else:
        mask = None if starts is None else mask_of(starts, q)
        out, sums, *_ = _aten._scaled_dot_product_efficient_attention(
            q, k, v, mask, True, 0.0, mask is None, scale=scale
        )
    if sums.shape[2] > tokens:  # rows of a multiple of 32
        sums = sums.narrow(2, 0, tokens).clone(memory_format=torch.contiguous_format)
    return _narrowed(out, width), sums


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    scale: float,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What causal_attention_backward returns."""
    tokens, width, value_width = q.shape[2], q.shape[3], v.shape[3]
    if 0 in q.shape[:3]:
        return new_heads(q), new_heads(k), new_heads(v)
    flash = _is_for_flash(q, v, starts)
    q, k, v = _widened(flash, q, k, v)
    grad, out = (_operand(x, v.shape[3]) for x in (grad, out))
    unused = torch.empty((), dtype=torch.int64, device=q.device)  # a random state, for dropout
    if flash:
        grads = _aten._scaled_dot_product_flash_attention_backward(
            *(grad, q, k, v, out, logsumexp.contiguous(), None, None, tokens, tokens, 0.0, True),
            *(unused, unused),
            scale=scale,
        )
    else:
        mask = None if starts is None else mask_of(starts, q)
        sums = F.pad(logsumexp.contiguous(), (0, -tokens % _SUMS_STEP), value=math.inf)
        grads = _aten._scaled_dot_product_efficient_attention_backward(
            *(grad, q, k, v, mask, out, sums, unused, unused, 0.0),
            [True, True, True, False],
            mask is None,
            scale=scale,
        )
    grad_q, grad_k, grad_v = grads[:3]
    return _narrowed(grad_q, width), _narrowed(grad_k, width), _narrowed(grad_v, value_width)


def check_starts(op: str, starts: Tensor | None) -> None:
    """Under DSE_CHECK=1 raises ValueError for a start behind its own position; that waits for the GPU."""
    if starts is None or os.environ.get("DSE_CHECK") != "1":
        return
    if _is_capturing(starts):
        raise RuntimeError(
            f"{op}: DSE_CHECK=1 waits for the GPU, which cannot be done while a graph is captured; unset it"
        )
    own = torch.arange(starts.shape[1], dtype=torch.int32, device=starts.device)
    for i, j in ((starts < 0) | (starts > own)).nonzero()[:1].tolist():
        raise ValueError(
            f"{op}: starts[{i}, {j}] must be between 0 and its own position {j}, got {int(starts[i, j])}; "
            "give the position where the token's document begins"
        )


def _is_capturing(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def new_heads(like: Tensor) -> Tensor:
    """A result [B, N, T, width], the heads of a token side by side."""
    b, n, t, width = like.shape
    return like.new_empty(b, t, n, width).transpose(1, 2)


def mask_of(starts: Tensor, q: Tensor) -> Tensor:
    """What is added to scores: 0 from each position's start to itself, elsewhere -inf; [B, N, T, T]."""
    tokens = q.shape[2]
    own = torch.arange(tokens, dtype=torch.int32, device=q.device).unsqueeze(1)
    at = torch.arange(_rounded_up(tokens, _MASK_STEP), dtype=torch.int32, device=q.device)
    seen = (at >= starts.unsqueeze(2)) & (at <= own)
    mask = torch.full(seen.shape, -math.inf, dtype=q.dtype, device=q.device).masked_fill_(seen, 0)
    return mask.narrow(2, 0, tokens).unsqueeze(1).expand(-1, q.shape[1], -1, -1)


def _is_for_flash(q: Tensor, v: Tensor, starts: Tensor | None) -> bool:
    return starts is None and q.dtype != torch.float32 and max(q.shape[3], v.shape[3]) <= _WIDEST_FLASH


def _widened(flash: bool, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v as wide as the kernel wants them; zeros change neither scores nor what results keep."""
    width, value_width = (max(_WIDTH_STEP, _rounded_up(x.shape[3], _WIDTH_STEP)) for x in (q, v))
    if flash:
        width = value_width = max(width, value_width)
    return _operand(q, width), _operand(k, width), _operand(v, value_width)


def _rounded_up(n: int, step: int) -> int:
    return n + -n % step


def _address(x: Tensor) -> int:
    return x.data_ptr()


def _operand(x: Tensor, width: int) -> Tensor:
    """x with zeros up to `width`, heads side by side; x itself where it is so already."""
    if x.shape[3] == width and _is_side_by_side(x) and _address(x) % _ADDRESS_STEP == 0:
        return x
    b, n, t, old = x.shape
    made = x.new_empty(b, t, n, width).transpose(1, 2)
    made.narrow(3, 0, old).copy_(x)
    made.narrow(3, old, width - old).zero_()
    return made


def _narrowed(x: Tensor, width: int) -> Tensor:
    """The first `width` columns as a result of its own, heads side by side."""
    if x.shape[3] == width and _is_side_by_side(x):
        return x
    x = x.narrow(3, 0, width)
    return new_heads(x).copy_(x)


def _is_side_by_side(x: Tensor) -> bool:
    _, n, t, width = x.shape
    return x.stride() == (t * n * width, width, n * width, 1)
