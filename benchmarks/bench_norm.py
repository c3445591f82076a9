"""rms_norm and its gradient, against torch's rms_norm and against copy bandwidth; the goal is 70 % of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek_ext import ops

SIZES = {"inside": (2048, 512), "beyond": (16384, 2048)}
GOAL = 0.70


@pytest.fixture(params=SIZES)
def inputs(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(*SIZES[request.param], generator=rng).bfloat16() for _ in range(2))
    return x, torch.randn(x.shape[1], generator=rng), grad


def torchs(x: Tensor, weight: Tensor) -> Tensor:
    return torch.nn.functional.rms_norm(x.float(), x.shape[1:], weight, 1e-6).to(x.dtype)


def test_rms_norm(inputs: tuple[Tensor, ...], threads: int, measure: Callable[..., Any]) -> None:
    x, weight, _ = inputs
    rivals = {"torch": lambda: torchs(x, weight)}
    measure(lambda: ops.rms_norm(x, weight, 1e-6), rivals, [x, weight], GOAL, rivals["torch"])


def test_rms_norm_again(inputs: tuple[Tensor, ...], threads: int, measure: Callable[..., Any]) -> None:
    x, weight, _ = inputs
    _, rstd = ops.rms_norm(x, weight, 1e-6)
    rival = {"torch": lambda: torchs(x, weight)}
    measure(lambda: ops.rms_norm_again(x, weight, rstd), rival, [x, weight, rstd], GOAL, rival["torch"])


def test_rms_norm_backward(inputs: tuple[Tensor, ...], threads: int, measure: Callable[..., Any]) -> None:
    x, weight, grad = inputs
    _, rstd = ops.rms_norm(x, weight, 1e-6)
    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = torchs(*leaves)
    measure(
        lambda: ops.rms_norm_backward(grad, x, weight, rstd),
        {"torch": lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)},
        [grad, x, weight, rstd],
        GOAL,
    )
