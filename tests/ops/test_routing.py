"""route, update_router_bias_, sequence_balance_loss against loops in plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode

from deepseek_ext import ops

OPS = torch.ops.deepseek_ext


def chosen_by_hand(choice: list[float], top_k: int, n_groups: int, topk_groups: int) -> list[int]:
    """One token's experts; Python's sort is stable, so equal keys stay in order of their index."""
    choice = [-math.inf if math.isnan(c) else c for c in choice]
    size = len(choice) // n_groups

    def group_score(g: int) -> float:
        return sum(sorted(choice[g * size : (g + 1) * size], reverse=True)[:2])

    kept = sorted(range(n_groups), key=group_score, reverse=True)[:topk_groups]
    masked = [c if e // size in kept else -math.inf for e, c in enumerate(choice)]
    return sorted(range(len(choice)), key=lambda e: masked[e], reverse=True)[:top_k]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


SHAPES = [  # experts, top_k, n_groups, topk_groups
    (8, 2, 4, 2),
    (32, 4, 4, 2),
    (6, 3, 1, 1),
    (6, 2, 6, 3),  # groups of one expert
    (8, 8, 2, 2),
    (9, 1, 3, 1),
    (256, 8, 8, 4),
]


@st.composite
def routings(draw: st.DrawFn) -> tuple[tuple[int, int, int, int], list[list[float]], list[float]]:
    """Choices on a coarse grid, so that ties of experts and of groups are common; NaN logits too."""
    shape = draw(st.sampled_from(SHAPES[:6]))
    logit = st.one_of(st.integers(-2, 2).map(float), st.just(math.nan))
    logits = draw(st.lists(st.lists(logit, min_size=shape[0], max_size=shape[0]), min_size=1, max_size=4))
    bias = draw(st.lists(st.sampled_from([0.0, 0.25, -8.0, -1e6]), min_size=shape[0], max_size=shape[0]))
    return shape, logits, bias


@settings(max_examples=200, deadline=None)
@given(routings())
def test_choice_with_ties_and_nan(case: tuple[tuple[int, int, int, int], list[list[float]], list[float]]) -> None:
    (experts, top_k, n_groups, topk_groups), logits, bias = case
    x, b = torch.tensor(logits), torch.tensor(bias)
    routed = ops.route(
        x, b, top_k=top_k, n_groups=n_groups, topk_groups=topk_groups, routed_scaling_factor=1.0
    )
    choice = (torch.sigmoid(x) + b).tolist()
    expected = [chosen_by_hand(c, top_k, n_groups, topk_groups) for c in choice]
    assert routed.indices.tolist() == expected
    counts = [sum(e in row for row in expected) for e in range(experts)]
    assert routed.load.tolist() == counts
