"""The gated activation of an expert: silu(gate) * up, times the weight the router gave this row.

gate_up [M, 2I] holds gate first, then up; weights [M]. Computed in FP32 (FP64 for FP64 inputs).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .quantize import dequantize_tiles, quantize_tiles


def swiglu(gate_up: Tensor, weights: Tensor | None = None) -> Tensor:
    """silu(gate) * up * weight, [M, I] in gate_up's dtype."""
    gate, up = _halves(gate_up)
    out = gate * torch.sigmoid(gate) * up
    if weights is not None:
        out = out * weights[:, None]
    return out.to(gate_up.dtype)


def swiglu_quantize(
    gate_up: Tensor, weights: Tensor | None = None, *, power_of_2: bool = False, cache: bool = False
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The tiles of swiglu's result, not rounded in between, and, for the backward, those of gate_up."""
    codes, scales = quantize_tiles(swiglu(_wide(gate_up), weights), power_of_2=power_of_2)
    cached = quantize_tiles(gate_up, power_of_2=power_of_2) if cache else (None, None)
    return codes, scales, *cached


def swiglu_backward(
    grad: Tensor, gate_up_codes: Tensor, gate_up_scales: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """swiglu_gradient at the cached gate_up, in BF16, FP32 and BF16; None for weights that are None."""
    gate_up = dequantize_tiles(gate_up_codes, gate_up_scales)
    grad_gate_up, grad_weights, out = swiglu_gradient(grad, gate_up, weights)
    return grad_gate_up.bfloat16(), None if weights is None else grad_weights, out.bfloat16()


def swiglu_gradient(
    grad: Tensor, gate_up: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of gate_up [M, 2I] and weights [M], and the output [M, I] again, in FP32 (or FP64)."""
    gate, up = _halves(gate_up)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    out = silu * up
    grad = _wide(grad)
    grad_weights = (grad * out).sum(-1)
    if weights is not None:
        grad, out = grad * weights[:, None], out * weights[:, None]
    grad_gate = grad * up * (sigmoid + silu * (1 - sigmoid))
    return torch.cat([grad_gate, grad * silu], dim=-1), grad_weights, out


def _halves(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    gate, up = gate_up.chunk(2, dim=-1)
    return _wide(gate).contiguous(), _wide(up).contiguous()  # sigmoid is five times slower on strided rows


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
