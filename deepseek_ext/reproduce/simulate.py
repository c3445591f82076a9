"""FP8 training taken apart: products whose operands pass through E4M3 each by a choice of its own.

A simulated product rounds an operand to E4M3 and back, in the tiles that a recipe names, and multiplies in
FP32; an operand that the recipe leaves out is rounded to BF16. What the shipped FP8 path has besides is
absent: the FP8 and E5M6 caches, and power-of-two scales other than those of the input that wgrad reads again.

Shapes: M rows, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from .. import ops
from ..model import DeepseekV3
from ..nn.linear import Linear
from ..nn.moe import Experts, SwiGLU
from ..nn.product import Operand, add_or_widen
from ..reference.formats import E4M3_MAX, encode_e4m3, finite_amax, scale_of

Tiling = Literal["1x128", "128x128", "tensor"]
Watch = Callable[[str, Tensor], None]
"""Told of each gradient [M, N] that enters a backward, with the name of the layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What shares a scale in each operand; None leaves the operand in BF16. The defaults are the paper's."""

    activation: Tiling | None = "1x128"
    weight: Tiling | None = "128x128"
    gradient: Tiling | None = "1x128"


def through_e4m3(x: Tensor, tiling: Tiling | None, *, power_of_2: bool = False) -> Tensor:
    """x [M, K] as E4M3 holds it with one scale a tile: FP32 [M, K]; with None as BF16 holds it."""
    x = x.contiguous()
    if tiling is None or x.numel() == 0:
        return x.bfloat16().float()
    if tiling == "1x128":
        return ops.dequantize_tiles(*ops.quantize_tiles(x, power_of_2=power_of_2))
    if tiling == "128x128":
        return ops.dequantize_blocks(*ops.quantize_blocks(x, power_of_2=power_of_2))
    x = x.float()
    scale, multiplier = scale_of(finite_amax(x, (0, 1)), E4M3_MAX, power_of_2)
    return encode_e4m3(x * multiplier).view(torch.float8_e4m3fn).float() * scale


@dataclass(frozen=True, slots=True)
class SimulatedProduct:
    """A `Product` by a recipe. weight: [N, K] as `through_e4m3` made it."""

    weight: Tensor
    recipe: Recipe
    watch: Callable[[Tensor], None] | None = None

    @property
    def reads(self) -> torch.dtype:
        return self.weight.dtype

    def operand(self, x: Tensor) -> Operand:
        return (through_e4m3(x, self.recipe.activation),)

    def fprop(self, x: Operand, dtype: torch.dtype) -> Tensor:
        return torch.mm(x[0], self.weight.t()).to(dtype)

    def grad_operands(self, grad: Tensor) -> tuple[Operand, Operand]:
        if self.watch:
            self.watch(grad)
        tiling = self.recipe.gradient
        rows = through_e4m3(grad, tiling)
        return (rows,), (through_e4m3(grad.t(), tiling) if tiling == "1x128" else rows.t(),)

    def dgrad(self, grad: Operand, dtype: torch.dtype) -> Tensor:
        return torch.mm(grad[0], self.weight).to(dtype)

    def transposed(self, x: Operand) -> Operand:
        tiling = self.recipe.activation
        # Blocks and whole tensors are their own transposes; only 1x128 tiles are cut anew.
        return (through_e4m3(x[0].t(), tiling, power_of_2=True).t() if tiling == "1x128" else x[0],)

    def wgrad(self, grad_t: Operand, x_t: Operand, into: Tensor | None) -> Tensor:
        return add_or_widen(torch.mm(grad_t[0], x_t[0]), into)


class _Simulated:
    """What the layers below share: products by the model's recipe."""

    recipe: Recipe
    watch: Callable[[Tensor], None] | None

    def weight_of(self, *weights: Tensor) -> Tensor:
        return through_e4m3(torch.cat(weights), self.recipe.weight)


class _SimulatedLinear(_Simulated, Linear):
    def product(self) -> SimulatedProduct:
        return SimulatedProduct(self.derive(self.weight_of, self.weight), self.recipe, self.watch)


class _SimulatedSwiGLU(_Simulated, SwiGLU):
    def gate_up(self) -> SimulatedProduct:
        weight = self.derive(self.weight_of, self.gate_proj.weight, self.up_proj.weight)
        return SimulatedProduct(weight, self.recipe, self.watch)

    def forward(self, x: Any, *context: Any) -> Any:
        y = super().forward(x)
        return (y, None) if context else y  # as DenseFFN returns it


class _SimulatedExperts(_Simulated, Experts):
    """One expert after the other."""

    def forward(self, x: Tensor, weights: Tensor, indices: Tensor, meanwhile: Any = None) -> Tensor:
        gate_ups, downs = self.derive(self._weights, self.gate_up, self.down)
        rows, slots, offs = ops.expert_order(indices, len(gate_ups))
        sizes = offs.diff(prepend=offs.new_zeros(1)).tolist()
        x_rows = ops.gather_rows(x, rows, indices.shape[1]).split(sizes)
        weight_rows = weights.flatten().index_select(0, rows).split(sizes)
        up_weights, down_weights = self.gate_up.unbind(), self.down.unbind()
        out = []
        for e in range(len(gate_ups)):
            gate_up = SimulatedProduct(gate_ups[e], self.recipe, self.watch)
            down = SimulatedProduct(downs[e], self.recipe, self.watch)
            hidden = ops.swiglu(_Multiply.apply(x_rows[e], up_weights[e], gate_up), weight_rows[e])
            out.append(_Multiply.apply(hidden, down_weights[e], down))
        return ops.combine_rows(torch.cat(out), slots)

    def _weights(self, gate_up: Tensor, down: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        return list(map(self.weight_of, gate_up)), list(map(self.weight_of, down))


class _Multiply(torch.autograd.Function):
    """x W^T of one expert by a simulated product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, by: SimulatedProduct) -> Tensor:
        ctx.save_for_backward(x)
        ctx.by = by
        return by.fprop(by.operand(x), x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (x,), by = ctx.saved_tensors, ctx.by
        operand, operand_t = by.grad_operands(grad)
        return by.dgrad(operand, x.dtype), by.wgrad(operand_t, by.transposed(by.operand(x)), None), None


def simulate(model: DeepseekV3, recipe: Recipe, watch: Watch | None = None) -> None:
    """Turns every FP8 product of `model` into a simulated one, in place."""
    for name, module in model.named_modules():
        if getattr(module, "precision", None) != "fp8":
            continue
        for kind, simulated in (
            (Linear, _SimulatedLinear),
            (SwiGLU, _SimulatedSwiGLU),
            (Experts, _SimulatedExperts),
        ):
            if isinstance(module, kind):
                module.__class__ = simulated
                vars(module).update(recipe=recipe, watch=partial(watch, name) if watch else None)
    model.weights_changed()  # what the layers derived was for the products that they had
