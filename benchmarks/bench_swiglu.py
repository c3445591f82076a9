"""swiglu and its quantised forms against the PyTorch that a user would write.

Served by plain PyTorch so far: only the quantisation inside runs in a kernel.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from deepseek_ext import ops

SHAPES = [(4096, 256), (16384, 1024)]  # rows (tokens x top-k), 2I


def composition(gate_up: Tensor, weights: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return (silu(gate.float()) * up.float() * weights[:, None]).to(gate_up.dtype)


def tiles_by_hand(x: Tensor) -> tuple[Tensor, Tensor]:
    tiles = x.float().unflatten(-1, (-1, 128))
    scales = tiles.abs().amax(-1, keepdim=True) / 448
    return (tiles / scales).to(torch.float8_e4m3fn).flatten(-2), scales.squeeze(-1)


@pytest.fixture(params=SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def inputs(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    rows, columns = request.param
    return torch.randn(rows, columns).bfloat16(), torch.rand(rows)


def test_swiglu(inputs: tuple[Tensor, Tensor], threads: int, versus: Any) -> None:
    moved = inputs[0].numel() * 3  # BF16: two columns read for one written
    versus(lambda: ops.swiglu(*inputs), {"torch": lambda: composition(*inputs)}, bytes_moved=moved)


def test_swiglu_quantize(inputs: tuple[Tensor, Tensor], threads: int, versus: Any) -> None:
    gate_up, weights = inputs

    def rival() -> None:
        tiles_by_hand(composition(gate_up, weights))
        tiles_by_hand(gate_up)

    moved = gate_up.numel() * 7 // 2  # BF16 read; its codes and half as many of the product written
    versus(lambda: ops.swiglu_quantize(gate_up, weights, cache=True), {"torch": rival}, bytes_moved=moved)


def test_swiglu_backward(inputs: tuple[Tensor, Tensor], threads: int, versus: Any) -> None:
    """Against autograd through the composition on BF16: twice the memory kept, nothing to dequantise."""
    gate_up, weights = inputs
    codes, scales = ops.quantize_tiles(gate_up)
    grad = torch.randn(gate_up.shape[0], gate_up.shape[1] // 2).bfloat16()
    leaves = gate_up.clone().requires_grad_(), weights.clone().requires_grad_()

    def rival() -> None:
        out = composition(*leaves)
        torch.autograd.grad(out, leaves, grad)

    moved = gate_up.numel() * 5  # codes and BF16 gradient read, BF16 gradient and output written
    versus(lambda: ops.swiglu_backward(grad, codes, scales, weights), {"torch": rival}, bytes_moved=moved)
