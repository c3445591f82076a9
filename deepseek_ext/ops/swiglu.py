"""The gated activation between an expert's two matrix products: silu(gate) * up, times the gate weight.

gate_up [M, 2I] holds gate first, then up. weights float32 [M] is what the router gave the token of this
row, or None for 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..reference import swiglu as reference
from ._library import NAMESPACE, serve_by_reference

_ops = torch.ops.deepseek_ext
_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def swiglu(gate_up: Tensor, weights: Tensor | None = None) -> Tensor:
    """silu(gate) * up * weight, [M, I] in gate_up's dtype, computed in FP32.

    gate_up: bfloat16, float16 or float32 [M, 2I]; weights: float32 [M]. Differentiable in both. Raises
    ValueError for another dtype or shape.
    """
    return _ops.swiglu.default(gate_up, weights)


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _check_gate_up(op: str, gate_up: Tensor) -> None:
    if gate_up.dtype not in _FLOATS:
        raise ValueError(f"{op}: gate_up must be bfloat16, float16 or float32, got {_dtype(gate_up)}")
    if gate_up.dim() != 2 or gate_up.shape[1] % 2 != 0:
        raise ValueError(
            f"{op}: gate_up must be [M, 2I], gate first, then up; got shape {list(gate_up.shape)}"
        )


def _check_weights(op: str, weights: Tensor | None, rows: int, dtype: torch.dtype) -> None:
    if weights is None:
        return
    if weights.dtype != dtype:
        raise ValueError(f"{op}: weights must be float32, got {_dtype(weights)}; convert it with .float()")
    if weights.dim() != 1 or weights.shape[0] != rows:
        raise ValueError(f"{op}: weights must be [M] = [{rows}], one for each row, got {list(weights.shape)}")


def _swiglu_fake(gate_up: Tensor, weights: Tensor | None = None) -> Tensor:
    _check_gate_up("swiglu", gate_up)
    _check_weights("swiglu", weights, gate_up.shape[0], torch.promote_types(gate_up.dtype, torch.float32))
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


def _swiglu_setup(ctx: Any, inputs: tuple[Tensor, Tensor | None], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _swiglu_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
    gate_up, weights = ctx.saved_tensors
    grad_gate_up, grad_weights, _ = reference.swiglu_gradient(grad, gate_up, weights)
    return grad_gate_up.to(gate_up.dtype), None if weights is None else grad_weights


serve_by_reference("swiglu(Tensor gate_up, Tensor? weights=None) -> Tensor", reference.swiglu, _swiglu_fake)
torch.library.register_autograd(f"{NAMESPACE}::swiglu", _swiglu_backward, setup_context=_swiglu_setup)
