"""swiglu, its quantised form and its backward, against what a user would compose and against copy bandwidth.

Bytes are those that must move: inputs read once, results written once. The goals, as shares of the measured
copy bandwidth for as many bytes: swiglu_quantize 85 % beyond the last-level cache and 50 % inside, the others
70 %. Neither the copy nor the operators pay for page faults (see keep_freed_memory).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from deepseek_ext import ops

# Rows (tokens x top-k) x 2I: a small model's expert and V3's; 5 to 12 MB stay inside the last-level cache.
SIZES = {"inside, narrow": (4096, 512), "inside": (512, 4096), "beyond": (8192, 4096)}
QUANTIZE_GOAL = {"inside, narrow": 0.50, "inside": 0.50, "beyond": 0.85}
GOAL = 0.70


def composition(gate_up: Tensor, weights: Tensor) -> Tensor:
    """In BF16, as the usual implementations of an expert do it."""
    gate, up = gate_up.chunk(2, dim=-1)
    return silu(gate) * up * weights[:, None].to(gate_up.dtype)


def tiles_by_hand(x: Tensor) -> tuple[Tensor, Tensor]:
    tiles = x.float().unflatten(-1, (-1, 128))
    scales = tiles.abs().amax(-1, keepdim=True) / 448
    return (tiles / scales).to(torch.float8_e4m3fn).flatten(-2), scales.squeeze(-1)


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def inputs(size: str) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    rows, columns = SIZES[size]
    return torch.randn(rows, columns, generator=rng).bfloat16(), torch.rand(rows, generator=rng)


def test_swiglu(inputs: tuple[Tensor, Tensor], threads: int, measure: Callable[..., Any]) -> None:
    rivals = {"torch": lambda: composition(*inputs)}
    measure(lambda: ops.swiglu(*inputs), rivals, inputs, GOAL, rivals["torch"])


@pytest.mark.parametrize("cache", [False, True], ids=["alone", "with_cache"])
def test_swiglu_quantize(
    inputs: tuple[Tensor, Tensor], size: str, threads: int, cache: bool, measure: Callable[..., Any]
) -> None:
    gate_up, weights = inputs

    def rival() -> tuple[Tensor, ...]:
        results = tiles_by_hand(composition(gate_up, weights))
        return (*results, *tiles_by_hand(gate_up)) if cache else results

    measure(
        lambda: ops.swiglu_quantize(gate_up, weights, cache=cache),
        {"torch": rival},
        inputs,
        QUANTIZE_GOAL[size],
        rival,
    )


def test_swiglu_gradient(inputs: tuple[Tensor, Tensor], threads: int, measure: Callable[..., Any]) -> None:
    """Against autograd through the composition, its forward included."""
    gate_up, weights = inputs
    grad = torch.randn(gate_up.shape[0], gate_up.shape[1] // 2).bfloat16()
    leaves = gate_up.clone().requires_grad_(), weights.clone().requires_grad_()
    measure(
        lambda: ops.swiglu_gradient(grad, *inputs),
        {"torch": lambda: torch.autograd.grad(composition(*leaves), leaves, grad)},
        [grad, *inputs],
        GOAL,
    )


def test_swiglu_backward(inputs: tuple[Tensor, Tensor], threads: int, measure: Callable[..., Any]) -> None:
    """Against autograd through the composition on BF16: twice the memory kept, nothing to dequantise."""
    gate_up, weights = inputs
    codes, scales = ops.quantize_tiles(gate_up)
    grad = torch.randn(gate_up.shape[0], gate_up.shape[1] // 2).bfloat16()
    leaves = gate_up.clone().requires_grad_(), weights.clone().requires_grad_()
    measure(
        lambda: ops.swiglu_backward(grad, codes, scales, weights),
        {"torch": lambda: torch.autograd.grad(composition(*leaves), leaves, grad)},
        [grad, codes, scales, weights],
        GOAL,
    )
