"""Tokens, choices and groups for the tests of the exchange; every rank makes those of all ranks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from ranks import WORLD, Place
from torch import Tensor

from deepseek_ext.parallel import ExpertGroup

EXPERTS, TOP_K = 8, 3
MODES = ["flat", "node", "two-level"]
ROUTINGS = ["uneven", "masked", "empty", "all to one", "one token", "repeated"]


def expert_group(place: Place, mode: str) -> ExpertGroup:
    """All four ranks."""
    if mode == "two-level":
        return ExpertGroup.two_level(place.across, place.inside)
    everyone = place.groups[WORLD]
    return ExpertGroup.flat(everyone, order="node" if mode == "node" else "rank", ranks_per_node=2)


class Batch(NamedTuple):
    """What each rank has."""

    x: list[Tensor]
    weights: list[Tensor]
    indices: list[Tensor]


def batch(routing: str, hidden: int = 72, dtype: torch.dtype = torch.float32, seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed + 100 * ROUTINGS.index(routing))
    tokens = {"empty": [0, 0, 6, 0], "one token": [0, 1, 0, 0]}.get(routing, [5, 0, 17, 9])
    indices = [torch.rand(t, EXPERTS, generator=rng).argsort(1)[:, :TOP_K].int() for t in tokens]
    if routing == "masked":
        indices = [i.masked_fill(torch.rand(i.shape, generator=rng) < 0.5, -1) for i in indices]
        indices[3][:] = -1
    if routing == "empty":  # some ranks have no tokens, others get none
        indices = [i % 2 for i in indices]
    if routing == "all to one":
        indices = [i % 2 + 4 for i in indices]
    if routing == "repeated":
        indices = [i[:, :1].expand(-1, TOP_K).contiguous() for i in indices]
    x = [torch.randn(t, hidden, generator=rng).to(dtype) for t in tokens]
    return Batch(x, [torch.rand(t, TOP_K, generator=rng) for t in tokens], indices)


def by_every_expert(x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
    """Expert by expert in FP64: the weighted sum of sin(x + e) (e + 1) over a token's experts."""
    y = torch.zeros_like(x, dtype=torch.float64)
    for e in range(EXPERTS):
        weight = (weights.double() * (indices == e)).sum(1, keepdim=True)
        y = y + weight * torch.sin(x.double() + e) * (e + 1)
    return y


def expert_of_rows(offs: Tensor, first: int) -> Tensor:
    """The number of each row's expert."""
    counts = torch.diff(offs, prepend=offs.new_zeros(1))
    return torch.repeat_interleave(torch.arange(first, first + len(offs)), counts)
