"""A linear layer whose three matrix products run in FP8, differentiable (DeepSeek-V3, section 3.3).

The operator returns x's tiles beside the product, since they are all that backward needs of x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._checks import check_linear, check_weight_codes
from ._kinds import explained, register_fake
from ._transposed import transposed_weight
from .derivatives import differentiable, first_order_only
from .wgrad import accumulation, weight_gradient

_ops = torch.ops.deepseek_ext


@explained
def fp8_linear(
    x: Tensor, weight: Tensor, *, codes: tuple[Tensor, Tensor] | None = None, power_of_2: bool = False
) -> Tensor:
    """Product x W^T with fprop, dgrad and wgrad in E4M3: [..., N] in x's dtype.

    x [..., K], bfloat16 or float32, is quantised in 1x128 tiles, whose scales are powers of two if
    power_of_2 is set. weight [N, K] is float32 or bfloat16; `codes` are its (codes, scales) from
    quantize_blocks, for a layer that quantises once a step, and are made here if None. Whatever the codes,
    the gradient goes to `weight`.

    Of x only the tiles are saved. Backward quantises the gradient once in both directions, reads the same
    weight codes transposed, and re-tiles x's codes for the weight gradient, which is summed in FP32.
    Gradients have the dtypes of x and weight; one that is not needed is not computed. Under
    accumulate_weight_gradients the weight's is added straight to its `.grad`. Differentiable in x and weight,
    once. Raises ValueError for arguments that do not fit. Source: section 3.3.
    """
    if codes is None:
        check_linear("fp8_linear", x, weight)
        codes = _ops.quantize_blocks.default(weight.detach())
    return _fp8_linear(x, weight, *codes, power_of_2)[0]


def _forward(
    x: Tensor, weight: Tensor, codes: Tensor, scales: Tensor, power_of_2: bool
) -> tuple[Tensor, Tensor, Tensor]:
    check_linear("fp8_linear", x, weight)
    check_weight_codes("fp8_linear", "weight", weight, codes, scales)
    tiles, tile_scales = _ops.quantize_tiles.default(x.reshape(-1, x.shape[-1]), power_of_2=power_of_2)
    y = _ops.gemm.default(tiles, tile_scales, codes, scales, out_dtype=x.dtype)
    return y.view(*x.shape[:-1], codes.shape[0]), tiles, tile_scales


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, codes, scales, _ = inputs
    _, tiles, tile_scales = output
    ctx.mark_non_differentiable(tiles, tile_scales)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(tiles, tile_scales, codes, scales)
    ctx.x_shape, ctx.x_dtype, ctx.weight_dtype = x.shape, x.dtype, weight.dtype
    ctx.accumulation = accumulation()


@first_order_only("fp8_linear")
def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    if grad is None or not (needs_x or needs_weight):
        return None, None, None, None, None
    tiles, tile_scales, codes, scales = ctx.saved_tensors
    grad = grad.reshape(-1, grad.shape[-1])
    if needs_x and needs_weight:
        grad_tiles, grad_scales, grad_tiles_t, grad_scales_t = _ops.quantize_tiles_both.default(grad)
    elif needs_x:
        grad_tiles, grad_scales = _ops.quantize_tiles.default(grad)
    else:
        grad_tiles_t, grad_scales_t = _ops.quantize_tiles_transposed.default(grad)
    grad_x = grad_weight = None
    if needs_x:
        by = transposed_weight(codes, scales)
        grad_x = _ops.gemm.default(grad_tiles, grad_scales, *by, out_dtype=ctx.x_dtype)
        grad_x = grad_x.view(ctx.x_shape)
    if needs_weight:

        def wgrad(into: Tensor | None) -> Tensor:
            operands = grad_tiles_t, grad_scales_t, *_ops.retile.default(tiles, tile_scales)
            if into is None:
                return _ops.gemm.default(*operands, out_dtype=ctx.weight_dtype)
            _ops.gemm_accumulate_.default(into, *operands)
            return into

        grad_weight = weight_gradient(ctx, 1, ctx.accumulation, wgrad)
    return grad_x, grad_weight, None, None, None


_NAME = "deepseek_ext::fp8_linear"
torch.library.define(
    _NAME,
    "(Tensor x, Tensor weight, Tensor codes, Tensor scales, bool power_of_2) -> (Tensor, Tensor, Tensor)",
)
torch.library.impl(_NAME, "CompositeExplicitAutograd", _forward)
register_fake("fp8_linear", _forward)  # the operators it calls have fakes of their own
_fp8_linear = differentiable("fp8_linear", _backward, _setup_context)
