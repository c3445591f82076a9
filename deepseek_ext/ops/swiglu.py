"""The gated activation between an expert's two matrix products: silu(gate) * up, times the gate weight.

gate_up [M, 2I] holds gate first, then up. weights float32 [M] is what the router gave the token of this
row, or None for 1. Everything is computed in FP32 and rounded once; the results, row sums included, are the
same bits on every CPU tier and for any number of threads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._checks import dtype_of, num_tiles, require, require_float, require_float32, shape_of
from ._kinds import explained, register_fake
from ._library import _fragment
from .derivatives import differentiable, first_order_only, require_no_grad
from .quantize import _new_codes, _new_scales

_ops = torch.ops.deepseek_ext


@explained
def swiglu(gate_up: Tensor, weights: Tensor | None = None) -> Tensor:
    """silu(gate) * up * weight, [M, I] in gate_up's dtype, computed in FP32.

    gate_up: bfloat16, float16 or float32 [M, 2I]; weights: float32 [M]. Differentiable in both, once: the
    gradient is swiglu_gradient's. A result beyond the dtype's largest finite value is infinite. Raises
    ValueError for another dtype or shape.
    """
    return _swiglu(gate_up, weights)


@explained
def swiglu_quantize(
    gate_up: Tensor, weights: Tensor | None = None, *, power_of_2: bool = False, cache: bool = False
) -> tuple[Tensor, ...]:
    """swiglu and quantize_tiles in one read of gate_up: (codes [M, I], scales [M, ceil(I/128)]).

    The product is quantised from FP32, not rounded in between: the result is quantize_tiles(swiglu(gate_up
    .float(), weights)), bit for bit. With cache=True two more results follow, what swiglu_backward reads:
    the tiles of gate_up, codes [M, 2I] and scales [M, ceil(2I/128)]. gate_up: bfloat16, float16 or float32
    [M, 2I]; weights: float32 [M]; codes float8_e4m3fn, scales float32, powers of two if power_of_2 is set.
    Not differentiable. Raises ValueError for another dtype or shape. Source: section 3.3.3, low-precision
    activation.
    """
    results = _ops.swiglu_quantize.default(gate_up, weights, power_of_2=power_of_2, cache=cache)
    return results if cache else results[:2]


@explained
def swiglu_gradient(
    grad: Tensor, gate_up: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Gradients of swiglu: (grad_gate_up [M, 2I] in gate_up's dtype, grad_weights float32 [M] or None).

    grad: the gradient of swiglu's output, [M, I] in gate_up's dtype; gate_up: bfloat16, float16 or float32
    [M, 2I]; weights: float32 [M]. Not differentiable: see swiglu. Raises ValueError for another dtype or
    shape and for a tensor that requires grad.
    """
    require_no_grad("swiglu_gradient", "swiglu", grad=grad, gate_up=gate_up, weights=weights)
    return _ops.swiglu_gradient.default(grad, gate_up, weights)


@explained
def swiglu_backward(
    grad: Tensor, gate_up_codes: Tensor, gate_up_scales: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients of swiglu from the FP8 tiles of its input, and its output again for the weight gradient.

    grad: bfloat16, float16 or float32 [M, I]; gate_up_codes: float8_e4m3fn [M, 2I], gate_up_scales: float32
    [M, ceil(2I/128)], from swiglu_quantize(..., cache=True); weights: float32 [M]. Returns (grad_gate_up
    bfloat16 [M, 2I], grad_weights float32 [M] or None, output bfloat16 [M, I]), computed in FP32. Not
    differentiable: see swiglu. Raises ValueError for arguments that do not fit and for a tensor that requires
    grad. Source: section 3.3.3, inputs of the SwiGLU operator.
    """
    require_no_grad(
        "swiglu_backward", "swiglu",
        grad=grad, gate_up_codes=gate_up_codes, gate_up_scales=gate_up_scales, weights=weights,
    )  # fmt: skip
    return _ops.swiglu_backward.default(grad, gate_up_codes, gate_up_scales, weights)


# Fakes. They state the same requirements as the kernels (csrc/ops/swiglu.h), in the same words.


def _check_gate_up(op: str, gate_up: Tensor) -> None:
    require_float(op, "gate_up", gate_up)
    require(
        gate_up.dim() == 2,
        f"{op}: gate_up must be [M, 2I], gate first, then up, got {shape_of(gate_up)}; "
        "flatten the leading dimensions into M",
    )
    require(
        gate_up.shape[1] % 2 == 0,
        f"{op}: gate_up must be [M, 2I], gate first, then up, got the odd width {gate_up.shape[1]}; "
        "give gate and up the same width",
    )


def _check_weights(op: str, weights: Tensor | None, rows: int) -> None:
    if weights is None:
        return
    require_float32(op, "weights", weights)
    require(
        weights.dim() == 1 and weights.shape[0] == rows,
        f"{op}: weights must be [M] = [{rows}], one for each row, got {shape_of(weights)}; "
        "pass one number for each row, or None",
    )


def _check_grad(op: str, grad: Tensor, rows: int, columns: int) -> None:
    require(
        grad.dim() == 2 and grad.shape[0] == rows and grad.shape[1] == columns // 2,
        f"{op}: grad must be [M, I] = [{rows}, {columns // 2}], got {shape_of(grad)}; "
        "pass the gradient of swiglu's output",
    )


def _new_grad_weights(weights: Tensor | None) -> Tensor | None:
    return None if weights is None else weights.new_empty(weights.shape[0])


def _swiglu_fake(gate_up: Tensor, weights: Tensor | None = None) -> Tensor:
    _check_gate_up("swiglu", gate_up)
    _check_weights("swiglu", weights, gate_up.shape[0])
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


def _swiglu_quantize_fake(
    gate_up: Tensor, weights: Tensor | None = None, *, power_of_2: bool = False, cache: bool = False
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    _check_gate_up("swiglu_quantize", gate_up)
    _check_weights("swiglu_quantize", weights, gate_up.shape[0])
    rows, columns = gate_up.shape
    codes, scales = _new_tiles(gate_up, rows, columns // 2)
    return codes, scales, *(_new_tiles(gate_up, rows, columns) if cache else (None, None))


def _swiglu_gradient_fake(
    grad: Tensor, gate_up: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    op = "swiglu_gradient"
    _check_gate_up(op, gate_up)
    require(
        grad.dtype == gate_up.dtype,
        f"{op}: grad must have gate_up's dtype {dtype_of(gate_up)}, got {dtype_of(grad)}; "
        "convert it with .to()",
    )
    _check_grad(op, grad, *gate_up.shape)
    _check_weights(op, weights, gate_up.shape[0])
    return gate_up.new_empty(gate_up.shape), _new_grad_weights(weights)


def _swiglu_backward_fake(
    grad: Tensor, gate_up_codes: Tensor, gate_up_scales: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor]:
    op = "swiglu_backward"
    require(
        gate_up_codes.dtype == torch.float8_e4m3fn,
        f"{op}: gate_up_codes must be float8_e4m3fn, got {dtype_of(gate_up_codes)}; "
        "make them with swiglu_quantize(..., cache=True)",
    )
    require(
        gate_up_codes.dim() == 2 and gate_up_codes.shape[1] % 2 == 0,
        f"{op}: gate_up_codes must be [M, 2I], got {shape_of(gate_up_codes)}; "
        "pass the codes of swiglu_quantize(..., cache=True)",
    )
    require_float32(op, "gate_up_scales", gate_up_scales, "pass the scales that came with gate_up_codes")
    rows, columns = gate_up_codes.shape
    tiles = num_tiles(columns)
    require(
        gate_up_scales.dim() == 2 and gate_up_scales.shape[0] == rows and gate_up_scales.shape[1] == tiles,
        f"{op}: gate_up_scales must be [M, ceil(2I/128)] = [{rows}, {tiles}], "
        f"got {shape_of(gate_up_scales)}; pass the scales that came with gate_up_codes",
    )
    require_float(op, "grad", grad)
    _check_grad(op, grad, rows, columns)
    _check_weights(op, weights, rows)
    return (
        grad.new_empty(rows, columns, dtype=torch.bfloat16),
        _new_grad_weights(weights),
        grad.new_empty(rows, columns // 2, dtype=torch.bfloat16),
    )


def _new_tiles(x: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    return _new_codes(x, rows, columns), _new_scales(x, rows, num_tiles(columns))


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


@first_order_only("swiglu")
def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
    gate_up, weights = ctx.saved_tensors
    return _ops.swiglu_gradient.default(grad, gate_up, weights)


register_fake("swiglu", _swiglu_fake)
register_fake("swiglu_quantize", _swiglu_quantize_fake)
register_fake("swiglu_gradient", _swiglu_gradient_fake)
register_fake("swiglu_backward", _swiglu_backward_fake)
_swiglu = differentiable("swiglu", _backward, _setup_context)
_fragment.impl("swiglu_quantize", torch.library.fallthrough_kernel, "Autograd")
