"""Causal attention without a matrix of scores.

On the CPU by kernels of this package; on a GPU by torch's: its flash kernel for 16-bit heads up to 192 wide,
its memory-efficient kernel for FP32, for wider heads and where documents are kept apart. Shapes: B sequences,
N heads, T tokens, D = width of a query and of a key, V = width of a value. Results have the heads of a token
side by side in memory, as the next projection reads them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import attention_cuda
from ._checks import dtype_of, require, require_float, require_int32, shape_of
from ._kinds import explained, register_fake
from ._library import NAMESPACE
from .derivatives import differentiable, first_order_only, require_no_grad

_ops = torch.ops.deepseek_ext


@explained
def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, starts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """softmax(scale q k^T) v over earlier tokens and the own, and the logarithm of each row's sum.

    q, k: bfloat16, float16 or float32 [B, N, T, D]; v: [B, N, T, V] in the same dtype; scale: positive;
    starts: int32 [B, T], the first position that each token may attend to, where packed documents are not to
    see each other; None: 0. Returns (out [B, N, T, V] in v's dtype, logsumexp float32 [B, N, T], natural).
    Scores and sums are FP32; where the CPU multiplies BF16 the factors of each product are BF16 if q is.
    Differentiable in q, k and v through `out`, once: the gradient is causal_attention_backward's. Raises
    ValueError for other dtypes, shapes and values.
    """
    return _causal_attention(q, k, v, scale, starts)


@explained
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
    """Gradients of q, k and v from that of causal_attention's `out`; scores are computed again.

    grad: [B, N, T, V] in q's dtype; q, k [B, N, T, D], v [B, N, T, V], scale and starts int32 [B, T] as
    causal_attention got them; out [B, N, T, V] and logsumexp float32 [B, N, T] as it returned them. Not
    differentiable: see causal_attention. Raises ValueError for other dtypes and shapes and for a tensor that
    requires grad.
    """
    operands = {"grad": grad, "q": q, "k": k, "v": v, "out": out}
    require_no_grad("causal_attention_backward", "causal_attention", **operands)
    return _ops.causal_attention_backward.default(grad, q, k, v, out, logsumexp, scale, starts)


# Fakes. They state the same requirements as the kernels (csrc/ops/attention.h), in the same words.


def _check_heads(op: str, name: str, x: Tensor, dtype: torch.dtype) -> None:
    require_float(op, name, x)
    require(
        x.dim() == 4, f"{op}: {name} must be [B, N, T, width], got {shape_of(x)}; put heads before tokens"
    )
    require(
        x.dtype == dtype,
        f"{op}: {name} must have q's dtype {dtype_of(dtype)}, got {dtype_of(x)}; convert it with .to()",
    )


def _check(op: str, q: Tensor, k: Tensor, v: Tensor, scale: float, starts: Tensor | None) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        _check_heads(op, name, x, q.dtype)
    require(
        k.shape == q.shape,
        f"{op}: k must have q's shape {shape_of(q)}, got {shape_of(k)}; "
        "repeat keys that heads share with .expand()",
    )
    require(
        v.shape[:3] == q.shape[:3],
        f"{op}: v must be [B, N, T, width] with q's B, N and T, got {shape_of(v)} for q {shape_of(q)}; "
        "repeat values that heads share with .expand()",
    )
    require(
        scale > 0 and math.isfinite(scale),
        f"{op}: scale must be positive and finite, got {scale:g}; a usual one is 1 / sqrt(width)",
    )
    if starts is None:
        return
    require_int32(op, "starts", starts)
    require(
        starts.dim() == 2 and starts.shape[0] == q.shape[0] and starts.shape[1] == q.shape[2],
        f"{op}: starts must be [B, T] = {[q.shape[0], q.shape[2]]}, got {shape_of(starts)}; "
        "give the first position that each token may attend to",
    )


def _check_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    scale: float,
    starts: Tensor | None,
) -> None:
    op = "causal_attention_backward"
    _check(op, q, k, v, scale, starts)
    _check_heads(op, "grad", grad, q.dtype)
    _check_heads(op, "out", out, q.dtype)
    require(
        grad.shape == v.shape,
        f"{op}: grad must have v's shape {shape_of(v)}, got {shape_of(grad)}; "
        "pass the gradient of causal_attention's first result",
    )
    require(
        out.shape == v.shape,
        f"{op}: out must have v's shape {shape_of(v)}, got {shape_of(out)}; "
        "pass causal_attention's first result",
    )
    require(
        logsumexp.dtype == torch.float32 and logsumexp.shape == q.shape[:3],
        f"{op}: logsumexp must be float32 [B, N, T] = {list(q.shape[:3])}, "
        f"got {dtype_of(logsumexp)} {shape_of(logsumexp)}; pass causal_attention's second result",
    )


def _causal_attention_fake(
    q: Tensor, k: Tensor, v: Tensor, scale: float, starts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    _check("causal_attention", q, k, v, scale, starts)
    return attention_cuda.new_heads(v), q.new_empty(q.shape[:3], dtype=torch.float32)


def _causal_attention_backward_fake(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    scale: float,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_backward(grad, q, k, v, out, logsumexp, scale, starts)
    return attention_cuda.new_heads(q), attention_cuda.new_heads(k), attention_cuda.new_heads(v)


# On a GPU.


def _causal_attention_cuda(
    q: Tensor, k: Tensor, v: Tensor, scale: float, starts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    _check("causal_attention", q, k, v, scale, starts)
    attention_cuda.check_starts("causal_attention", starts)
    return attention_cuda.forward(q, k, v, scale, starts)


def _causal_attention_backward_cuda(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    scale: float,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_backward(grad, q, k, v, out, logsumexp, scale, starts)
    attention_cuda.check_starts("causal_attention_backward", starts)
    return attention_cuda.backward(grad, q, k, v, out, logsumexp, scale, starts)


def _setup_context(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float, Tensor | None], output: tuple[Tensor, Tensor]
) -> None:
    q, k, v, ctx.scale, starts = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output, starts)


@first_order_only("causal_attention")
def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *operands, starts = ctx.saved_tensors
    grads = _ops.causal_attention_backward.default(grad, *operands, ctx.scale, starts)
    return *grads, None, None


register_fake("causal_attention", _causal_attention_fake)
register_fake("causal_attention_backward", _causal_attention_backward_fake)
torch.library.register_kernel(f"{NAMESPACE}::causal_attention", "cuda", _causal_attention_cuda)
torch.library.register_kernel(
    f"{NAMESPACE}::causal_attention_backward", "cuda", _causal_attention_backward_cuda
)
_causal_attention = differentiable("causal_attention", _backward, _setup_context)
