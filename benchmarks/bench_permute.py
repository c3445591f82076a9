"""Bringing tokens into expert order and back, against what a user would write, and against copy bandwidth.

Bytes are those that must move: every input read once and every result written once, though a token's row has
as many copies as it has experts. The goal is 70 % of the measured bandwidth of a copy of as many bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from deepseek_ext import ops

EXPERTS, TOP_K = 32, 4
# Tokens x width: a step of the recipe's model, one of a wider one, and one that leaves the last-level cache.
SHAPES = [(2048, 256), (4096, 512), (4096, 4096)]
GOAL = 0.7


class Tokens(NamedTuple):
    x: Tensor  # BF16 [T, H]
    weights: Tensor  # FP32 [T, K]
    indices: Tensor  # an uneven routing


@pytest.fixture(params=SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def tokens(request: pytest.FixtureRequest) -> Tokens:
    count, width = request.param
    choice = torch.rand(count, EXPERTS) * torch.linspace(0.5, 1, EXPERTS)
    indices = choice.argsort(1, descending=True)[:, :TOP_K].int()
    return Tokens(torch.randn(count, width).bfloat16(), torch.rand(count, TOP_K), indices)


def test_expert_order(tokens: Tokens, threads: int, versus: Callable[..., Any]) -> None:
    indices = tokens.indices

    def composed() -> None:
        flat = indices.flatten().long()
        order = flat.argsort(stable=True)
        order.argsort()
        torch.bincount(flat, minlength=EXPERTS).cumsum(0)

    versus(lambda: ops.expert_order(indices, EXPERTS), {"torch": composed})


def test_gather_rows(tokens: Tokens, threads: int, measure: Callable[..., Any]) -> None:
    x, rows = tokens.x, ops.expert_order(tokens.indices, EXPERTS).rows
    source = rows.long() // TOP_K
    rivals = {"index_select": lambda: x.index_select(0, source)}
    measure(lambda: ops.gather_rows(x, rows, TOP_K), rivals, [x, rows], GOAL)


def test_gather_tiles(tokens: Tokens, threads: int, measure: Callable[..., Any]) -> None:
    rows = ops.expert_order(tokens.indices, EXPERTS).rows
    codes, scales = ops.quantize_tiles(tokens.x)
    source = rows.long() // TOP_K
    plain = codes.view(torch.uint8)
    measure(
        lambda: ops.gather_tiles(codes, scales, rows, TOP_K),
        {"index_select": lambda: (plain.index_select(0, source), scales.index_select(0, source))},
        [codes, scales, rows],
        GOAL,
    )


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_combine_rows(tokens: Tokens, weighted: bool, threads: int, measure: Callable[..., Any]) -> None:
    x, weights, indices = tokens
    rows, slots, _ = ops.expert_order(indices, EXPERTS)
    rows_out = ops.gather_rows(x, rows, TOP_K)
    target = rows.long() // TOP_K

    def composed() -> Tensor:
        wide = rows_out.float()
        if weighted:
            wide = wide * weights.flatten()[rows.long(), None]
        return x.new_zeros(x.shape, dtype=torch.float32).index_add_(0, target, wide).bfloat16()

    arguments = (rows_out, slots, weights) if weighted else (rows_out, slots)
    measure(lambda: ops.combine_rows(*arguments), {"index_add": composed}, arguments, GOAL)


def test_combine_rows_backward(tokens: Tokens, threads: int, measure: Callable[..., Any]) -> None:
    """Both gradients of the weighted sum, through autograd."""
    x, weights, indices = tokens
    rows, slots, _ = ops.expert_order(indices, EXPERTS)
    target = rows.long() // TOP_K
    rows_out = ops.gather_rows(x, rows, TOP_K).requires_grad_()
    factors = weights.clone().requires_grad_()

    def composed() -> Tensor:
        wide = rows_out.float() * factors.flatten()[rows.long(), None]
        return x.new_zeros(x.shape, dtype=torch.float32).index_add_(0, target, wide).bfloat16()

    ours, theirs = ops.combine_rows(rows_out, slots, factors), composed()
    measure(
        lambda: torch.autograd.grad(ours, (rows_out, factors), x, retain_graph=True),
        {"index_add": lambda: torch.autograd.grad(theirs, (rows_out, factors), x, retain_graph=True)},
        [x, rows_out.detach(), slots],
        goal=None,
    )
