"""Root-mean-square norm over the last dimension, in FP32 (arXiv:1910.07467).

K columns; [...] any leading dimensions. The same bits on every CPU tier and for any number of threads.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ._checks import dtype_of, require, require_float, require_float32, shape_of
from ._kinds import explained, register_fake
from .derivatives import differentiable, first_order_only, require_no_grad

_ops = torch.ops.deepseek_ext


@explained
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x / sqrt(mean(x^2) + eps) * weight, and the factor that each row was given.

    x: bfloat16, float16 or float32 [..., K]; weight: float32 [K]; eps: not negative. Returns (out [..., K]
    in x's dtype, rstd float32 [...]). Computed in FP32, rounded once. Differentiable in x and weight through
    `out`, once: the gradient is rms_norm_backward's. Raises ValueError for other dtypes, shapes and values.
    """
    return _rms_norm(x, weight, eps)


@explained
def rms_norm_again(x: Tensor, weight: Tensor, rstd: Tensor) -> Tensor:
    """rms_norm's first result from its second, with the same bits: [..., K] in x's dtype.

    x: bfloat16, float16 or float32 [..., K]; weight: float32 [K]; rstd: float32 [...]. Not differentiable.
    Raises ValueError for other dtypes and shapes and for a tensor that requires grad.
    """
    require_no_grad("rms_norm_again", "rms_norm", x=x, weight=weight, rstd=rstd)
    return _ops.rms_norm_again.default(x, weight, rstd)


@explained
def rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of rms_norm: (grad_x [..., K] in x's dtype, grad_weight float32 [K]).

    grad: the gradient of rms_norm's first result, [..., K] in x's dtype; x: bfloat16, float16 or float32
    [..., K]; weight: float32 [K]; rstd: float32 [...], rms_norm's second. Not differentiable: see rms_norm.
    Raises ValueError for other dtypes and shapes and for a tensor that requires grad.
    """
    require_no_grad("rms_norm_backward", "rms_norm", grad=grad, x=x, weight=weight, rstd=rstd)
    return _ops.rms_norm_backward.default(grad, x, weight, rstd)


# Fakes. They state the same requirements as the kernels (csrc/ops/norm.h), in the same words.


def _check_x(op: str, x: Tensor, weight: Tensor) -> None:
    require_float(op, "x", x)
    require(
        x.dim() >= 1 and x.shape[-1] > 0,
        f"{op}: x must be [..., K] with K > 0, got {shape_of(x)}; there is nothing to normalise",
    )
    require_float32(op, "weight", weight)
    require(
        weight.dim() == 1 and weight.shape[0] == x.shape[-1],
        f"{op}: weight must be [K] = {[x.shape[-1]]}, got {shape_of(weight)}; "
        "pass one number for each column of x",
    )


def _check_rstd(op: str, rstd: Tensor, x: Tensor) -> None:
    require_float32(op, "rstd", rstd)
    require(
        rstd.shape == x.shape[:-1],
        f"{op}: rstd must be [...] = {list(x.shape[:-1])}, got {shape_of(rstd)}; "
        "pass rms_norm's second result",
    )


def _rms_norm_fake(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    _check_x("rms_norm", x, weight)
    require(
        eps >= 0 and math.isfinite(eps),
        f"rms_norm: eps must be finite and not negative, got {eps:g}; a usual one is 1e-6",
    )
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)


def _rms_norm_again_fake(x: Tensor, weight: Tensor, rstd: Tensor) -> Tensor:
    _check_x("rms_norm_again", x, weight)
    _check_rstd("rms_norm_again", rstd, x)
    return x.new_empty(x.shape)


def _rms_norm_backward_fake(grad: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    op = "rms_norm_backward"
    _check_x(op, x, weight)
    _check_rstd(op, rstd, x)
    require(
        grad.dtype == x.dtype,
        f"{op}: grad must have x's dtype {dtype_of(x)}, got {dtype_of(grad)}; convert it with .to()",
    )
    require(
        grad.shape == x.shape,
        f"{op}: grad must have x's shape {shape_of(x)}, got {shape_of(grad)}; "
        "pass the gradient of rms_norm's first result",
    )
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no zeros for rstd
    ctx.save_for_backward(x, weight, output[1])


@first_order_only("rms_norm")
def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, Tensor | None, None]:
    if grad is None:
        return None, None, None
    return *_ops.rms_norm_backward.default(grad, *ctx.saved_tensors), None


register_fake("rms_norm", _rms_norm_fake)
register_fake("rms_norm_again", _rms_norm_again_fake)
register_fake("rms_norm_backward", _rms_norm_backward_fake)
_rms_norm = differentiable("rms_norm", _backward, _setup_context)
