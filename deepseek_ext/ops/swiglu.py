"""The gated activation between an expert's two matrix products: silu(gate) * up, times the gate weight.

gate_up [M, 2I] holds gate first, then up. weights float32 [M] is what the router gave the token of this
row, or None for 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference import swiglu as reference
from ._checks import dtype_of, num_tiles, shape_of
from ._library import NAMESPACE, serve_by_reference

PIECE = 1 << 18  # elements of gate_up, 1 MiB in FP32
_ops = torch.ops.deepseek_ext
_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def swiglu(gate_up: Tensor, weights: Tensor | None = None) -> Tensor:
    """silu(gate) * up * weight, [M, I] in gate_up's dtype, computed in FP32.

    gate_up: bfloat16, float16 or float32 [M, 2I]; weights: float32 [M]. Differentiable in both. Raises
    ValueError for another dtype or shape.
    """
    return _ops.swiglu.default(gate_up, weights)


def swiglu_quantize(
    gate_up: Tensor, weights: Tensor | None = None, *, power_of_2: bool = False, cache: bool = False
) -> tuple[Tensor, ...]:
    """swiglu and quantize_tiles in one read of gate_up: (codes [M, I], scales [M, ceil(I/128)]).

    The product is quantised from FP32, not rounded in between. With cache=True two more results follow,
    what swiglu_backward reads: the tiles of gate_up, codes [M, 2I] and scales [M, ceil(2I/128)]. gate_up:
    bfloat16, float16 or float32 [M, 2I]; weights: float32 [M]; codes float8_e4m3fn, scales float32, powers
    of two if power_of_2 is set. Not differentiable. Raises ValueError for another dtype or shape. Source:
    section 3.3.3, low-precision activation.
    """
    results = _ops.swiglu_quantize.default(gate_up, weights, power_of_2=power_of_2, cache=cache)
    return results if cache else results[:2]


def swiglu_backward(
    grad: Tensor, gate_up_codes: Tensor, gate_up_scales: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients of swiglu from the FP8 tiles of its input, and its output again for the weight gradient.

    grad: bfloat16, float16 or float32 [M, I]; gate_up_codes: float8_e4m3fn [M, 2I], gate_up_scales: float32
    [M, ceil(2I/128)], from swiglu_quantize(..., cache=True); weights: float32 [M]. Returns (grad_gate_up
    bfloat16 [M, 2I], grad_weights float32 [M] or None, output bfloat16 [M, I]), computed in FP32. Raises
    ValueError for arguments that do not fit. Source: section 3.3.3, inputs of the SwiGLU operator.
    """
    return _ops.swiglu_backward.default(grad, gate_up_codes, gate_up_scales, weights)


def _check_gate_up(op: str, gate_up: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if gate_up.dtype not in dtypes:
        raise ValueError(f"{op}: gate_up must be bfloat16, float16 or float32, got {dtype_of(gate_up)}")
    if gate_up.dim() != 2 or gate_up.shape[1] % 2 != 0:
        raise ValueError(f"{op}: gate_up must be [M, 2I], gate first, then up; got shape {shape_of(gate_up)}")


def _check_weights(op: str, weights: Tensor | None, rows: int, dtype: torch.dtype) -> None:
    if weights is None:
        return
    if weights.dtype != dtype:
        raise ValueError(f"{op}: weights must be float32, got {dtype_of(weights)}; convert it with .float()")
    if weights.dim() != 1 or weights.shape[0] != rows:
        raise ValueError(f"{op}: weights must be [M] = [{rows}], one for each row, got {shape_of(weights)}")


def _swiglu_fake(gate_up: Tensor, weights: Tensor | None = None) -> Tensor:
    _check_gate_up("swiglu", gate_up, _FLOATS)
    _check_weights("swiglu", weights, gate_up.shape[0], torch.promote_types(gate_up.dtype, torch.float32))
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


def _swiglu(gate_up: Tensor, weights: Tensor | None = None) -> Tensor:
    out = _swiglu_fake(gate_up, weights)
    with torch.no_grad():
        for rows in _pieces(gate_up):
            out[rows] = reference.swiglu(gate_up[rows], None if weights is None else weights[rows])
    return out


def _swiglu_quantize(
    gate_up: Tensor, weights: Tensor | None = None, *, power_of_2: bool = False, cache: bool = False
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """reference.swiglu_quantize, its quantisation done by the operator, which has a kernel."""
    codes, scales = _new_tiles(gate_up, gate_up.shape[0], gate_up.shape[1] // 2)
    with torch.no_grad():
        for rows in _pieces(gate_up):
            product = reference.swiglu(gate_up[rows].float(), None if weights is None else weights[rows])
            codes[rows], scales[rows] = _ops.quantize_tiles.default(product, power_of_2=power_of_2)
    if not cache:
        return codes, scales, None, None
    return codes, scales, *_ops.quantize_tiles.default(gate_up, power_of_2=power_of_2)


def _swiglu_quantize_fake(
    gate_up: Tensor, weights: Tensor | None = None, *, power_of_2: bool = False, cache: bool = False
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    _check_gate_up("swiglu_quantize", gate_up, _FLOATS[:3])
    _check_weights("swiglu_quantize", weights, gate_up.shape[0], torch.float32)
    rows, columns = gate_up.shape
    codes, scales = _new_tiles(gate_up, rows, columns // 2)
    return codes, scales, *(_new_tiles(gate_up, rows, columns) if cache else (None, None))


def _swiglu_backward(
    grad: Tensor, gate_up_codes: Tensor, gate_up_scales: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """reference.swiglu_backward, its dequantisation done by the operator, which has a kernel."""
    grad_gate_up, grad_weights, out = _swiglu_backward_fake(grad, gate_up_codes, gate_up_scales, weights)
    with torch.no_grad():
        for rows in _pieces(gate_up_codes):
            gate_up = _ops.dequantize_tiles.default(gate_up_codes[rows], gate_up_scales[rows], torch.float32)
            row_weights = None if weights is None else weights[rows]
            results = reference.swiglu_gradient(grad[rows], gate_up, row_weights)
            grad_gate_up[rows], out[rows] = results[0], results[2]
            if grad_weights is not None:
                grad_weights[rows] = results[1]
    return grad_gate_up, grad_weights, out


def _pieces(gate_up: Tensor) -> list[slice]:
    """Rows that stay in the cache while plain PyTorch goes over them many times."""
    step = max(1, PIECE // max(1, gate_up.shape[1]))
    return [slice(start, start + step) for start in range(0, gate_up.shape[0], step)]


def _swiglu_backward_fake(
    grad: Tensor, gate_up_codes: Tensor, gate_up_scales: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor]:
    op = "swiglu_backward"
    if gate_up_codes.dtype != torch.float8_e4m3fn:
        raise ValueError(
            f"{op}: gate_up_codes must be float8_e4m3fn, got {dtype_of(gate_up_codes)}; "
            "make them with swiglu_quantize(..., cache=True)"
        )
    if gate_up_codes.dim() != 2 or gate_up_codes.shape[1] % 2 != 0:
        raise ValueError(f"{op}: gate_up_codes must be [M, 2I], got shape {shape_of(gate_up_codes)}")
    rows, columns = gate_up_codes.shape
    tiles = num_tiles(columns)
    if gate_up_scales.dtype != torch.float32:
        raise ValueError(f"{op}: gate_up_scales must be float32, got {dtype_of(gate_up_scales)}")
    if gate_up_scales.dim() != 2 or gate_up_scales.shape[0] != rows or gate_up_scales.shape[1] != tiles:
        raise ValueError(
            f"{op}: gate_up_scales must be [M, ceil(2I/128)] = [{rows}, {tiles}], "
            f"got {shape_of(gate_up_scales)}; pass the scales that came with gate_up_codes"
        )
    if grad.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"{op}: grad must be bfloat16, float16 or float32, got {dtype_of(grad)}")
    if grad.dim() != 2 or grad.shape[0] != rows or grad.shape[1] != columns // 2:
        raise ValueError(f"{op}: grad must be [M, I] = [{rows}, {columns // 2}], got {shape_of(grad)}")
    _check_weights(op, weights, rows, torch.float32)
    return (
        grad.new_empty(rows, columns, dtype=torch.bfloat16),
        None if weights is None else weights.new_empty(rows),
        grad.new_empty(rows, columns // 2, dtype=torch.bfloat16),
    )


def _new_tiles(x: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    codes = x.new_empty(rows, columns, dtype=torch.float8_e4m3fn)
    return codes, x.new_empty(rows, num_tiles(columns), dtype=torch.float32)


def _swiglu_setup(ctx: Any, inputs: tuple[Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _swiglu_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
    gate_up, weights = ctx.saved_tensors
    grad_gate_up, grad_weights, _ = reference.swiglu_gradient(grad, gate_up, weights)
    return grad_gate_up.to(gate_up.dtype), None if weights is None else grad_weights


serve_by_reference("swiglu(Tensor gate_up, Tensor? weights=None) -> Tensor", _swiglu, _swiglu_fake)
serve_by_reference(
    "swiglu_quantize(Tensor gate_up, Tensor? weights=None, *, bool power_of_2=False, bool cache=False) "
    "-> (Tensor codes, Tensor scales, Tensor? gate_up_codes, Tensor? gate_up_scales)",
    _swiglu_quantize,
    _swiglu_quantize_fake,
)
serve_by_reference(
    "swiglu_backward(Tensor grad, Tensor gate_up_codes, Tensor gate_up_scales, Tensor? weights=None) "
    "-> (Tensor grad_gate_up, Tensor? grad_weights, Tensor output)",
    _swiglu_backward,
    _swiglu_backward_fake,
)
torch.library.register_autograd(f"{NAMESPACE}::swiglu", _swiglu_gradient, setup_context=_swiglu_setup)
