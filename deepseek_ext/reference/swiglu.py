"""The gated activation of an expert: silu(gate) * up, times the weight the router gave this row.

gate_up [M, 2I] holds gate first, then up; weights [M]. Computed in FP32 (FP64 for FP64 inputs).
"""

from __future__ import annotations

import torch
from torch import Tensor


def swiglu(gate_up: Tensor, weights: Tensor | None = None) -> Tensor:
    """silu(gate) * up * weight, [M, I] in gate_up's dtype."""
    gate, up = _wide(gate_up).chunk(2, dim=-1)
    out = gate * torch.sigmoid(gate) * up
    if weights is not None:
        out *= weights[:, None]
    return out.to(gate_up.dtype)


def swiglu_gradient(
    grad: Tensor, gate_up: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of gate_up [M, 2I] and weights [M], and the output [M, I] again, in FP32 (or FP64)."""
    gate, up = _wide(gate_up).chunk(2, dim=-1)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    out = silu * up
    grad = _wide(grad)
    grad_weights = (grad * out).sum(-1)
    if weights is not None:
        grad, out = grad * weights[:, None], out * weights[:, None]
    grad_gate = grad * up * (sigmoid + silu * (1 - sigmoid))
    return torch.cat([grad_gate, grad * silu], dim=-1), grad_weights, out


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
