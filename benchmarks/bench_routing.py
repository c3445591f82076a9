"""The router against the PyTorch that a user would write (which promises no order of ties)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek_ext import ops

SHAPES = [(4096, 32, 4, 4, 2), (4096, 256, 8, 8, 4)]  # tokens, experts, top-k, groups, groups kept


def composition(
    logits: Tensor, bias: Tensor, top_k: int, n_groups: int, topk_groups: int
) -> tuple[Tensor, ...]:
    scores = logits.sigmoid()
    choice = scores + bias
    group = choice.unflatten(1, (n_groups, -1)).topk(2, dim=2).values.sum(2).topk(topk_groups, dim=1).indices
    kept = torch.zeros(logits.shape[0], n_groups, dtype=torch.bool).scatter_(1, group, True)
    kept = kept.repeat_interleave(logits.shape[1] // n_groups, dim=1)
    indices = choice.masked_fill(~kept, -torch.inf).topk(top_k, dim=1).indices
    weights = scores.gather(1, indices)
    weights = weights / (weights.sum(1, keepdim=True) + 1e-20) * 2.5
    return weights, indices, torch.bincount(indices.flatten(), minlength=logits.shape[1])


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_route(shape: tuple[int, int, int, int, int], threads: int, versus: Any) -> None:
    tokens, experts, top_k, n_groups, topk_groups = shape
    logits, bias = torch.randn(tokens, experts), torch.randn(experts) * 0.1
    options = {"top_k": top_k, "n_groups": n_groups, "topk_groups": topk_groups}
    versus(
        lambda: ops.route(logits, bias, routed_scaling_factor=2.5, **options),
        {"torch": lambda: composition(logits, bias, **options)},
        bytes_moved=logits.numel() * 4 + tokens * top_k * 8,
    )


def test_sequence_balance_loss(threads: int, versus: Any) -> None:
    logits = torch.randn(4096, 32, requires_grad=True)
    indices = torch.rand(4096, 32).argsort(1)[:, :4].int()

    def ours() -> None:
        loss = ops.sequence_balance_loss(logits, indices, num_sequences=8, alpha=1e-4)
        torch.autograd.grad(loss, logits)

    def rival() -> None:
        scores = logits.sigmoid()
        share = (scores / scores.sum(1, keepdim=True)).view(8, 512, 32).mean(1)
        count = torch.nn.functional.one_hot(indices.long(), 32).sum(1).view(8, 512, 32).sum(1)
        torch.autograd.grad(1e-4 * (count * 32 / (4 * 512) * share).sum(1).mean(), logits)

    versus(ours, {"torch": rival}, bytes_moved=2 * logits.numel() * 4)
