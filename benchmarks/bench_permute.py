"""Bringing tokens into expert order and back, against the PyTorch that a user would write.

Served by plain PyTorch so far.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek_ext import ops

EXPERTS, TOP_K = 32, 4
SHAPES = [(1024, 256), (4096, 512)]  # tokens, width


@pytest.fixture(params=SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def tokens(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    """BF16 tokens and an uneven routing."""
    count, width = request.param
    choice = torch.rand(count, EXPERTS) * torch.linspace(0.5, 1, EXPERTS)
    return torch.randn(count, width).bfloat16(), choice.argsort(1, descending=True)[:, :TOP_K].int()


def test_expert_order(tokens: tuple[Tensor, Tensor], threads: int, versus: Any) -> None:
    indices = tokens[1]

    def rival() -> None:
        flat = indices.flatten().long()
        order = flat.argsort(stable=True)
        order.argsort()
        torch.bincount(flat, minlength=EXPERTS).cumsum(0)

    versus(lambda: ops.expert_order(indices, EXPERTS), {"torch": rival}, bytes_moved=3 * indices.numel() * 4)


def test_gather_rows(tokens: tuple[Tensor, Tensor], threads: int, versus: Any) -> None:
    x, indices = tokens
    rows = ops.expert_order(indices, EXPERTS).rows
    source = rows.long() // TOP_K
    versus(
        lambda: ops.gather_rows(x, rows, TOP_K),
        {"x[index]": lambda: x[source]},
        bytes_moved=2 * 2 * rows.numel() * x.shape[1],
    )


def test_gather_tiles(tokens: tuple[Tensor, Tensor], threads: int, versus: Any) -> None:
    x, indices = tokens
    rows = ops.expert_order(indices, EXPERTS).rows
    codes, scales = ops.quantize_tiles(x)
    source = rows.long() // TOP_K
    versus(
        lambda: ops.gather_tiles(codes, scales, rows, TOP_K),
        {"x[index]": lambda: (codes.view(torch.uint8)[source], scales[source])},
        bytes_moved=2 * rows.numel() * (x.shape[1] + 4 * scales.shape[1]),
    )


def test_combine_rows(tokens: tuple[Tensor, Tensor], threads: int, versus: Any) -> None:
    x, indices = tokens
    order = ops.expert_order(indices, EXPERTS)
    rows_out = ops.gather_rows(x, order.rows, TOP_K)
    target = order.rows.long() // TOP_K
    versus(
        lambda: ops.combine_rows(rows_out, order.slots),
        {
            "index_add": lambda: (
                torch.zeros(x.shape, dtype=torch.float32).index_add_(0, target, rows_out.float()).bfloat16()
            )
        },
        bytes_moved=2 * (rows_out.numel() + x.numel()),
    )
