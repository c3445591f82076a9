"""Linear layers in three precisions over FP32 parameters.

Shapes: M rows, K inputs, N outputs. A precision decides how a product is computed, never how a parameter is
stored: fp8 multiplies by E4M3 codes of the weight, bf16 by a BF16 copy, fp32 by the weight itself. Gradients
are FP32.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .. import ops
from ..ops.derivatives import first_order_only
from ..ops.wgrad import accumulation, weight_gradient
from .derived import Derived
from .product import Fp8Product, PlainProduct, Product, add_or_widen, input_again, product_backward
from .recompute import Recomputed, as_it_is

Precision = Literal["fp8", "bf16", "fp32"]
PRECISIONS: tuple[Precision, ...] = ("fp8", "bf16", "fp32")


def stream_dtype(precision: Precision) -> torch.dtype:
    """The dtype of the residual stream, and of every product that stays out of FP8."""
    return torch.float32 if precision == "fp32" else torch.bfloat16


def high_precision(precision: Precision) -> Precision:
    """The precision of the parts that FP8 leaves out (head, eh_proj; paper, section 3.3.1)."""
    return "bf16" if precision == "fp8" else precision


class _StandIn(torch.autograd.Function):
    """Gives `value` the gradient path of the weight that it was derived from."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, weight: Tensor) -> Tensor:
        ctx.accumulation = accumulation()
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None]:
        return None, weight_gradient(ctx, 1, ctx.accumulation, partial(add_or_widen, grad))


def stand_in(value: Tensor, weight: Tensor) -> Tensor:
    """`value`, whose gradient goes in FP32 to the weight that it was derived from."""
    return _StandIn.apply(value, weight)


def bf16_copy(weight: Tensor) -> Tensor:
    return weight.to(torch.bfloat16)


def product(owner: Derived, precision: Precision, *weights: Tensor, power_of_2: bool = False) -> Product:
    """The products by these weights, stacked; `owner` keeps what the precision derives from them."""
    if precision == "fp8":
        return Fp8Product(*owner.derive(partial(_fp8_codes, power_of_2=power_of_2), *weights))
    if precision == "bf16":
        return PlainProduct(owner.derive(_bf16_stack, *weights))
    return PlainProduct(owner.derive(_stack, *weights) if weights[1:] else weights[0].detach())


def _stack(*weights: Tensor) -> Tensor:
    return torch.cat(weights) if weights[1:] else weights[0]


def _fp8_codes(*weights: Tensor, power_of_2: bool) -> tuple[Tensor, Tensor]:
    return ops.quantize_blocks(_stack(*weights), power_of_2=power_of_2)


def _bf16_stack(*weights: Tensor) -> Tensor:
    return _stack(*map(bf16_copy, weights))


class _Project(torch.autograd.Function):
    """x W^T; saves what x is computed again from."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, source: Recomputed, by: Product) -> Tensor:
        ctx.save_for_backward(*source.kept)
        ctx.again, ctx.by = source.again, by
        ctx.accumulation = accumulation()
        return by.fprop(by.operand(x.flatten(0, -2)), x.dtype).unflatten(0, x.shape[:-1])

    @staticmethod
    @first_order_only("Linear")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, x_t = grad.flatten(0, -2), partial(input_again, ctx.again, ctx.saved_tensors, ctx.by)
        grad_x, grads = product_backward(ctx, ctx.by, {1: rows.shape[1]}, rows, x_t, grad.dtype)
        return grad_x.unflatten(0, grad.shape[:-1]), *grads, None, None


class Linear(Derived):
    """y = x W^T without bias: x [..., in_features] to [..., out_features], in x's dtype.

    power_of_2: whether the scales of the weight's FP8 codes are rounded up to powers of two.
    """

    power_of_2 = False

    def __init__(self, in_features: int, out_features: int, precision: Precision) -> None:
        super().__init__()
        self.precision = precision
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def product(self) -> Product:
        return product(self, self.precision, self.weight, power_of_2=self.power_of_2)

    def forward(self, x: Tensor | Recomputed) -> Tensor:
        source = as_it_is(x) if isinstance(x, Tensor) else x
        return _Project.apply(source.value, self.weight, source, self.product())
