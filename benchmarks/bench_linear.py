"""convert_linears on a whole module, against the same module in BF16 (torch.autocast) and in FP32.

Quantisation of activations, gradients and weights is in our times: training makes the weight's codes once a
step, decoding reads those of an earlier call.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepseek_ext import convert_linears

WIDTH, HIDDEN = 1024, 2816  # of a LLaMA-like feed-forward layer


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.up = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


@pytest.fixture
def models() -> tuple[FeedForward, FeedForward]:
    plain = FeedForward()
    converted = copy.deepcopy(plain)
    convert_linears(converted)
    return plain, converted


def step(model: nn.Module, x: Tensor, *, autocast: bool) -> Callable[[], None]:
    """One optimizer step's worth of work on the weights, without the optimizer's own."""

    def run() -> None:
        for module in model.modules():
            if hasattr(module, "weights_changed"):
                module.weights_changed()
        with torch.autocast(x.device.type, torch.bfloat16) if autocast else nullcontext():
            y = model(x)
        y.backward(torch.ones_like(y))
        model.zero_grad()

    return run


def flops(model: nn.Module, rows: int, products: int) -> int:
    return 2 * products * rows * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("rows", [256, 2048])
def test_train_a_converted_layer(rows: int, models: Any, threads: int, versus: Any) -> None:
    plain, converted = models
    x = torch.randn(rows, WIDTH, requires_grad=True)
    versus(
        step(converted, x, autocast=True),
        {"bf16": step(plain, x, autocast=True), "fp32": step(plain, x, autocast=False)},
        flops=flops(plain, rows, 3),
        rounds=5,
    )


@pytest.mark.parametrize("rows", [1, 64])
def test_run_a_converted_layer(rows: int, models: Any, threads: int, versus: Any) -> None:
    plain, converted = models
    low, x = copy.deepcopy(plain).bfloat16(), torch.randn(rows, WIDTH).bfloat16()

    def without_gradient(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
        return torch.no_grad()(lambda: model(x))

    versus(
        without_gradient(converted, x),
        {"bf16": without_gradient(low, x), "fp32": without_gradient(plain, x.float())},
        flops=flops(plain, rows, 1),
    )
