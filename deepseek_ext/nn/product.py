"""The three products of a linear layer, by our operators in FP8 and by torch otherwise.

A layer computes y = x W^T. Where backward has not kept a layer's input, the three stand alone: the input is
computed again, read as wgrad wants it, and the weight's gradient goes where `ops.wgrad` puts it.

Shapes: M rows, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import ops
from ..ops._transposed import transposed_weight
from ..ops.wgrad import weight_gradient
from .matmul import factor
from .recompute import Once

Operand = tuple[Tensor, ...]
"""A matrix as a product reads it: (codes, scales) of its tiles in FP8, else the matrix alone."""


class Product(Protocol):
    """The three products of a layer y = x W^T, and how they read x and the gradient of y.

    W [N, K] may be several weights stacked along N.
    """

    @property
    def reads(self) -> torch.dtype:
        """Products with the same `reads` have the same operands."""

    def operand(self, x: Tensor) -> Operand:
        """x [M, K] as fprop reads it."""

    def fprop(self, x: Operand, dtype: torch.dtype) -> Tensor:
        """x W^T: [M, N]."""

    def grad_operands(self, grad: Tensor) -> tuple[Operand, Operand]:
        """The gradient of y [M, N] as dgrad reads it, and, its N first, as wgrad does."""

    def dgrad(self, grad: Operand, dtype: torch.dtype) -> Tensor:
        """The gradient of x: [M, K]."""

    def transposed(self, x: Operand) -> Operand:
        """x as wgrad reads it."""

    def wgrad(self, grad_t: Operand, x_t: Operand, into: Tensor | None) -> Tensor:
        """The gradient in FP32 of the rows of W that grad_t holds, added to `into` if that is given."""


@dataclass(frozen=True, slots=True)
class Fp8Product:
    """All three in E4M3: x in 1x128 tiles, W in 128x128 blocks, re-tiled for wgrad (paper, section 3.3.2)."""

    codes: Tensor
    scales: Tensor

    @property
    def reads(self) -> torch.dtype:
        return self.codes.dtype

    def operand(self, x: Tensor) -> Operand:
        return ops.quantize_tiles(x)

    def fprop(self, x: Operand, dtype: torch.dtype) -> Tensor:
        codes, scales = x
        return ops.gemm(codes, scales, self.codes, self.scales, out_dtype=dtype)

    def grad_operands(self, grad: Tensor) -> tuple[Operand, Operand]:
        codes, scales, codes_t, scales_t = ops.quantize_tiles_both(grad)
        return (codes, scales), (codes_t, scales_t)

    def dgrad(self, grad: Operand, dtype: torch.dtype) -> Tensor:
        codes, scales = grad
        return ops.gemm(codes, scales, *transposed_weight(self.codes, self.scales), out_dtype=dtype)

    def transposed(self, x: Operand) -> Operand:
        codes, scales = x
        return ops.retile(codes, scales)

    def wgrad(self, grad_t: Operand, x_t: Operand, into: Tensor | None) -> Tensor:
        (grad_codes, grad_scales), (x_codes, x_scales) = grad_t, x_t
        if into is None:
            return ops.gemm(grad_codes, grad_scales, x_codes, x_scales, out_dtype=torch.float32)
        ops.gemm_accumulate_(into, grad_codes, grad_scales, x_codes, x_scales)
        return into


def add_or_widen(grad: Tensor, into: Tensor | None) -> Tensor:
    """A weight gradient as FP32, added to `into` if that is given."""
    return grad.float() if into is None else into.add_(grad)


@dataclass(frozen=True, slots=True)
class PlainProduct:
    """All three by torch, in the dtype of the weight or of its copy."""

    weight: Tensor

    @property
    def reads(self) -> torch.dtype:
        return self.weight.dtype

    def operand(self, x: Tensor) -> Operand:
        return (x.to(self.weight.dtype),)

    def fprop(self, x: Operand, dtype: torch.dtype) -> Tensor:
        return torch.mm(factor(x[0]), factor(self.weight).t()).to(dtype)

    def grad_operands(self, grad: Tensor) -> tuple[Operand, Operand]:
        grad = grad.to(self.weight.dtype)
        return (grad,), (grad.t(),)

    def dgrad(self, grad: Operand, dtype: torch.dtype) -> Tensor:
        return torch.mm(factor(grad[0]), factor(self.weight)).to(dtype)

    def transposed(self, x: Operand) -> Operand:
        return x

    def wgrad(self, grad_t: Operand, x_t: Operand, into: Tensor | None) -> Tensor:
        return add_or_widen(torch.mm(factor(grad_t[0]), factor(x_t[0])), into)


def product_backward(
    ctx: Any,
    by: Product,
    weights: dict[int, int],
    grad: Tensor,
    x_t: Callable[[], Operand],
    dtype: torch.dtype,
) -> tuple[Tensor, list[Tensor | None]]:
    """From the gradient of y [M, N] that of x [M, K] in `dtype`, and what `weight_gradients` returns."""
    operand, operand_t = by.grad_operands(grad)
    return by.dgrad(operand, dtype), weight_gradients(ctx, by, weights, operand_t, x_t)


def fprops(products: Sequence[Product], x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """x [M, K] times several weights; products that read it alike read one operand."""
    operands = {reads: by.operand(x) for reads, by in {by.reads: by for by in products}.items()}
    return [by.fprop(operands[by.reads], dtype) for by in products]


def fprops_backward(
    ctx: Any,
    products: Sequence[Product],
    first: int,
    grads: Sequence[Tensor],
    x_t: Callable[[Product], Operand],
    dtype: torch.dtype,
) -> tuple[Tensor, list[Tensor | None]]:
    """From the gradients of what `fprops` returned that of x, and what `weight_gradients` returns.

    first: the position of the first weight among the node's arguments; the others follow. x_t: makes x as a
    product's wgrad reads it.
    """
    shared_x_t = {by.reads: Once(partial(x_t, by)) for by in products}
    grad_x: list[Tensor] = []
    grad_weights: list[Tensor | None] = []
    for position, (by, grad) in enumerate(zip(products, grads, strict=True), start=first):
        part, more = product_backward(ctx, by, {position: grad.shape[1]}, grad, shared_x_t[by.reads], dtype)
        grad_x.append(part)
        grad_weights += more
    total, *others = grad_x
    for part in others:
        total.add_(part)
    return total, grad_weights


def input_again(again: Callable[..., Tensor], kept: tuple[Tensor, ...], by: Product) -> Operand:
    """A layer's input again(*kept) [..., K] (see `Recomputed`) as the wgrad of `by` reads it."""
    return by.transposed(by.operand(again(*kept).flatten(0, -2)))


def weight_gradients(
    ctx: Any, by: Product, weights: dict[int, int], grad_t: Operand, x_t: Callable[[], Operand]
) -> list[Tensor | None]:
    """What the backward of node ctx returns for each weight that `by` stacks.

    weights: the position of each among the node's arguments, and its number of rows. grad_t: the gradient of
    y as wgrad reads it. x_t: makes x as wgrad reads it, and is called at most once, by the first product that
    needs it. ctx.accumulation is that of forward.
    """
    shared_x_t = Once(x_t)
    grads: list[Tensor | None] = []
    whole, end = len(weights) == 1, 0
    for position, rows in weights.items():
        part, end = slice(end, end + rows), end + rows
        if not ctx.needs_input_grad[position]:
            grads.append(None)
            continue

        def wgrad(into: Tensor | None, part: slice = part) -> Tensor:
            return by.wgrad(grad_t if whole else tuple(t[part] for t in grad_t), shared_x_t(), into)

        grads.append(weight_gradient(ctx, position, ctx.accumulation, wgrad))
    return grads
