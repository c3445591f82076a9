"""The router against PyTorch compositions: one a user would write, and one as transformers' router works.

Neither promises an order of ties, and the second masks with 0, which is wrong for negative biases; both
count the load, as route does. Bytes are those that must move: logits once, a weight and an index per choice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from deepseek_ext import ops


class Shape(NamedTuple):
    tokens: int
    experts: int
    top_k: int
    n_groups: int
    topk_groups: int

    def options(self) -> dict[str, int]:
        return {"top_k": self.top_k, "n_groups": self.n_groups, "topk_groups": self.topk_groups}


SHAPES = [Shape(4096, 16, 4, 4, 2), Shape(4096, 32, 4, 4, 2), Shape(4096, 256, 8, 8, 4)]
Router = Callable[..., tuple[Tensor, Tensor, Tensor]]


def composed(logits: Tensor, bias: Tensor, top_k: int, n_groups: int, topk_groups: int) -> tuple[Tensor, ...]:
    scores = logits.sigmoid()
    choice = scores + bias
    if topk_groups < n_groups:
        best = choice.unflatten(1, (n_groups, -1)).topk(2, dim=2).values.sum(2).topk(topk_groups).indices
        kept = best.new_zeros(logits.shape[0], n_groups, dtype=torch.bool).scatter_(1, best, True)
        kept = kept.repeat_interleave(logits.shape[1] // n_groups, dim=1)
        choice = choice.masked_fill(~kept, -torch.inf)
    indices = choice.topk(top_k).indices
    weights = scores.gather(1, indices)
    weights = weights / (weights.sum(1, keepdim=True) + 1e-20) * 2.5
    return weights, indices.int(), torch.bincount(indices.flatten(), minlength=logits.shape[1])


def composed_like_transformers(
    logits: Tensor, bias: Tensor, top_k: int, n_groups: int, topk_groups: int
) -> tuple[Tensor, ...]:
    tokens, experts = logits.shape
    scores = logits.sigmoid()
    choice = scores + bias.unsqueeze(0)
    by_group = choice.view(tokens, n_groups, experts // n_groups)
    best = torch.topk(by_group.topk(2, dim=-1)[0].sum(dim=-1), k=topk_groups, dim=-1, sorted=False)[1]
    group_mask = logits.new_zeros(tokens, n_groups).scatter_(1, best, 1)
    mask = group_mask.unsqueeze(-1).expand(-1, n_groups, experts // n_groups).reshape(tokens, experts)
    choice = choice.masked_fill(~mask.bool(), 0.0)
    indices = torch.topk(choice, k=top_k, dim=-1, sorted=False)[1]
    weights = scores.gather(1, indices)
    weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return weights * 2.5, indices, torch.bincount(indices.flatten(), minlength=experts)


def inputs(shape: Shape) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(shape.tokens, shape.experts, generator=random)
    return logits, torch.randn(shape.experts, generator=random) * 0.1


def bytes_of(shape: Shape) -> int:
    return 4 * shape.tokens * shape.experts + 8 * shape.tokens * shape.top_k


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.tokens}x{s.experts}")
def test_route(shape: Shape, threads: int, versus: Any) -> None:
    logits, bias = inputs(shape)
    versus(
        lambda: ops.route(logits, bias, routed_scaling_factor=2.5, **shape.options()),
        {
            "composed": lambda: composed(logits, bias, **shape.options()),
            "transformers": lambda: composed_like_transformers(logits, bias, **shape.options()),
        },
        bytes_moved=bytes_of(shape),
    )


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.tokens}x{s.experts}")
def test_route_and_gradient(shape: Shape, threads: int, versus: Any) -> None:
    logits, bias = inputs(shape)
    logits.requires_grad_()
    grad = torch.randn(shape.tokens, shape.top_k)

    def both(route: Router) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(route(logits, bias, **shape.options())[0], logits, grad)

    versus(
        both(lambda *args, **options: ops.route(*args, **options, routed_scaling_factor=2.5)),
        {"composed": both(composed), "transformers": both(composed_like_transformers)},
        bytes_moved=bytes_of(shape) + 4 * logits.numel(),
    )


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s.tokens}x{s.experts}")
def test_sequence_balance_loss_and_gradient(shape: Shape, threads: int, versus: Any) -> None:
    tokens, experts, top_k, *_ = shape
    logits, sequences = inputs(shape)[0].requires_grad_(), 8
    indices = torch.rand(tokens, experts).argsort(1)[:, :top_k].int()

    def ours() -> None:
        loss = ops.sequence_balance_loss(logits, indices, num_sequences=sequences, alpha=1e-4)
        torch.autograd.grad(loss, logits)

    def rival() -> None:
        scores = logits.sigmoid()
        share = (scores / scores.sum(1, keepdim=True)).view(sequences, -1, experts).mean(1)
        chosen = logits.new_zeros(tokens, experts).scatter_(1, indices.long(), 1)
        count = chosen.view(sequences, -1, experts).sum(1)
        loss = 1e-4 * (count * (experts * sequences / (top_k * tokens)) * share).sum(1).mean()
        torch.autograd.grad(loss, logits)

    versus(ours, {"composed": rival}, bytes_moved=3 * 4 * logits.numel())


def test_update_router_bias(threads: int, versus: Any) -> None:
    """All routers of a model in one call, once a step: the released model has 58 and one for MTP."""
    bias, load = torch.zeros(59, 256), torch.randint(1000, (59, 256), dtype=torch.int32)

    def rival() -> None:
        load_f = load.float()
        bias.add_((load_f.mean(1, keepdim=True) - load_f).sign(), alpha=0.001)

    versus(
        lambda: ops.update_router_bias_(bias, load, 0.001),
        {"composed": rival},
        bytes_moved=3 * 4 * bias.numel(),
    )
