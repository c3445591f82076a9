"""causal_attention forward and backward against torch's scaled_dot_product_attention on the same operands.

On a GPU, where the operator calls torch's kernels too, the ratio shows what preparing their operands costs.

Floating-point operations are those of the scores that a token may see: half of the matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek_ext import ops

# Sequences, heads, tokens, widths of key and value: the two shapes of `make bench-step`, and a long one.
SHAPES = {"recipe": (8, 4, 256, 64, 64), "small": (4, 8, 512, 96, 64), "long": (1, 4, 2048, 192, 128)}


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return SHAPES[request.param]


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def operands(shape: tuple[int, ...], request: pytest.FixtureRequest) -> list[Tensor]:
    b, n, t, width, value = shape
    rng = torch.Generator().manual_seed(0)
    widths = (width, width, value, value)
    return [torch.randn(b, t, n, w, generator=rng).to(request.param).transpose(1, 2) for w in widths]


def flops(shape: tuple[int, ...], products: int) -> float:
    """Products of width D and V come in pairs, but for one more of width D in backward."""
    b, n, t, width, value = shape
    return b * n * t * (t + 1) * (products // 2 * (width + value) + products % 2 * width)


def equally_wide(x: Tensor, width: int) -> Tensor:
    """torch's kernel wants values as wide as keys."""
    return torch.nn.functional.pad(x, (0, width - x.shape[-1]))


def test_causal_attention(
    shape: tuple[int, ...], operands: list[Tensor], threads: int, versus: Callable[..., Any]
) -> None:
    q, k, v, _ = operands
    scale = q.shape[-1] ** -0.5

    def theirs() -> Tensor:
        wide = equally_wide(v, q.shape[-1])
        return torch.nn.functional.scaled_dot_product_attention(q, k, wide, is_causal=True, scale=scale)

    versus(lambda: ops.causal_attention(q, k, v, scale), {"torch": theirs}, flops=flops(shape, 2))


def test_causal_attention_backward(
    shape: tuple[int, ...], operands: list[Tensor], threads: int, versus: Callable[..., Any]
) -> None:
    q, k, v, grad = operands
    scale = q.shape[-1] ** -0.5
    out, logsumexp = ops.causal_attention(q, k, v, scale)
    leaves = [x.detach().requires_grad_() for x in (q, k, equally_wide(v, q.shape[-1]))]
    theirs = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=True, scale=scale)
    wide_grad = equally_wide(grad, q.shape[-1])
    versus(
        lambda: ops.causal_attention_backward(grad, q, k, v, out, logsumexp, scale),
        {"torch": lambda: torch.autograd.grad(theirs, leaves, wide_grad, retain_graph=True)},
        flops=flops(shape, 5),
    )
