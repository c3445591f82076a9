"""Linear layers in three precisions over FP32 parameters, and what is made from the parameters once a step.

Shapes: K inputs, N outputs. A precision decides how a product is computed, never how a parameter is stored:
fp8 multiplies by E4M3 codes of the weight, bf16 by a BF16 copy, fp32 by the weight itself. Gradients
are FP32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..ops.wgrad import accumulation, weight_gradient

Precision = Literal["fp8", "bf16", "fp32"]
PRECISIONS: tuple[Precision, ...] = ("fp8", "bf16", "fp32")
T = TypeVar("T")


def stream_dtype(precision: Precision) -> torch.dtype:
    """The dtype of the residual stream, and of every product that stays out of FP8."""
    return torch.float32 if precision == "fp32" else torch.bfloat16


def high_precision(precision: Precision) -> Precision:
    """The precision of the parts that FP8 leaves out (head, eh_proj; paper, section 3.3.1)."""
    return "bf16" if precision == "fp8" else precision


class Derived(nn.Module):
    """A module that keeps what it derives from its weights (FP8 codes, BF16 copies) until they change.

    Whoever writes weights says so by `weights_changed()`. The autograd version counter is looked at too, but
    it is not enough: an all-gather that fills a parameter from shards preserves it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._derived: Any = None
        self._versions: tuple[int, ...] = ()

    def weights_changed(self) -> None:
        """Drops what was derived; the next use derives it again."""
        self._derived = None

    def derive(self, make: Callable[..., T], *weights: Tensor) -> T:
        """make(*weights), computed without gradient and kept until the weights change."""
        versions = tuple(weight._version for weight in weights)
        if self._derived is None or versions != self._versions:
            # Out of inference mode too, whose tensors could not be saved for a later backward.
            with torch.inference_mode(False), torch.no_grad():
                self._derived = make(*weights)
            self._versions = versions
        return self._derived

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Derived:
        self.weights_changed()  # .to(device) swaps storage without a new version
        return super()._apply(fn, recurse)


class _StandIn(torch.autograd.Function):
    """Gives `value` the gradient path of the weights that it was derived from."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *weights: Tensor) -> Tensor:
        ctx.rows = [weight.shape[0] for weight in weights]
        ctx.accumulation = accumulation()
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        parts = [grad] if len(ctx.rows) == 1 else grad.split(ctx.rows)
        return None, *(
            weight_gradient(ctx, edge, ctx.accumulation, partial(_add_or_widen, part))
            for edge, part in enumerate(parts, start=1)
        )


def _add_or_widen(grad: Tensor, into: Tensor | None) -> Tensor:
    return grad.float() if into is None else into.add_(grad)


def stand_in(value: Tensor, *weights: Tensor) -> Tensor:
    """`value`, whose gradient goes in FP32 to the weights stacked in it along dimension 0."""
    return _StandIn.apply(value, *weights)


def bf16_copy(*weights: Tensor) -> Tensor:
    """The BF16 copy of weights stacked along dimension 0."""
    copies = [weight.to(torch.bfloat16) for weight in weights]
    return torch.cat(copies) if weights[1:] else copies[0]


def _fp8_codes(*weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes and scales of stacked weights, and a tensor of their shape that takes no memory."""
    stacked = torch.cat(weights) if weights[1:] else weights[0]
    return *ops.quantize_blocks(stacked), stacked.new_empty(()).expand(stacked.shape)


def linear(owner: Derived, precision: Precision, x: Tensor, *weights: Tensor) -> Tensor:
    """x [..., K] times the transpose of the weights [N_i, K] stacked along N: [..., sum N_i] in x's dtype.

    `owner` keeps what the precision derives from these weights.
    """
    if precision == "fp8":
        codes, scales, shape_only = owner.derive(_fp8_codes, *weights)
        # fp8_linear multiplies by the codes; of the weight it needs the shape, and where the gradient goes.
        weight = stand_in(shape_only, *weights) if weights[1:] else weights[0]
        return ops.fp8_linear(x, weight, codes=(codes, scales))
    if precision == "bf16":
        copy = owner.derive(bf16_copy, *weights)
        return F.linear(x.to(torch.bfloat16), stand_in(copy, *weights)).to(x.dtype)
    weight = torch.cat(weights) if weights[1:] else weights[0]
    return F.linear(x.float(), weight).to(x.dtype)


class Linear(Derived):
    """y = x W^T without bias: x [..., in_features] to [..., out_features], in x's dtype."""

    def __init__(self, in_features: int, out_features: int, precision: Precision) -> None:
        super().__init__()
        self.precision = precision
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x: Tensor) -> Tensor:
        return linear(self, self.precision, x, self.weight)
