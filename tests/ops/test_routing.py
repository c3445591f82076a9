"""route and update_router_bias_, bit for bit against loops in plain Python, wherever they run.

The loops start from the operator's own sigmoids, which routing without groups, of all experts, gives back; so
everything else is compared exactly, ties included.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import backends
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepseek_ext import ops
from deepseek_ext.reference import routing as reference

# A backend is set once for all examples.
BACKEND_OF_ALL = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


class Shape(NamedTuple):
    experts: int
    top_k: int
    n_groups: int
    topk_groups: int

    def options(self) -> dict[str, int]:
        return {"top_k": self.top_k, "n_groups": self.n_groups, "topk_groups": self.topk_groups}


SHAPES = [
    Shape(1, 1, 1, 1),
    Shape(8, 2, 4, 2),
    Shape(16, 4, 4, 2),
    Shape(24, 5, 3, 2),
    Shape(32, 4, 4, 2),
    Shape(6, 3, 1, 1),
    Shape(6, 2, 6, 3),  # groups of one expert
    Shape(8, 8, 2, 2),  # every expert
    Shape(9, 1, 3, 1),
    Shape(6, 4, 3, 2),  # every expert of the kept groups
    Shape(33, 7, 3, 2),  # no multiple of any vector
    Shape(40, 17, 1, 1),  # more than a vector's experts a token
    Shape(96, 33, 2, 1),
    Shape(160, 6, 8, 3),
    Shape(256, 8, 8, 4),
    Shape(272, 8, 16, 1),
]


def scores_of(x: Tensor) -> Tensor:
    """The sigmoids [T, E] that route works with: those of all experts, put back in their places."""
    experts = x.shape[1]
    everything = Shape(experts, experts, 1, 1).options()
    routed = ops.route(x, torch.zeros(experts), **everything, routed_scaling_factor=1.0, norm_topk_prob=False)
    return torch.empty_like(x).scatter(1, routed.indices.long(), routed.weights)


def chosen_by_hand(choice: list[float], shape: Shape) -> list[int]:
    """One token's experts, best first; Python's sort keeps equal keys in order of their index."""
    choice = [-math.inf if math.isnan(c) else c for c in choice]
    size = shape.experts // shape.n_groups

    def group_score(g: int) -> float:
        largest = sorted(choice[g * size : (g + 1) * size], reverse=True)[:2]
        with np.errstate(all="ignore"):
            score = float(np.sum(np.array(largest, dtype=np.float32)))  # ties are those of FP32
        return -math.inf if math.isnan(score) else score

    kept = sorted(range(shape.n_groups), key=group_score, reverse=True)[: shape.topk_groups]
    masked = [c if e // size in kept else -math.inf for e, c in enumerate(choice)]
    return sorted(range(len(choice)), key=lambda e: masked[e], reverse=True)[: shape.top_k]


def weights_by_hand(scores: list[np.float32], factor: float, norm: bool) -> list[np.float32]:
    total = np.float32(0)
    for score in scores:
        total = total + score
    total = total + np.float32(1e-20)
    return [(score / total if norm else score) * np.float32(factor) for score in scores]


def assert_routed_by_hand(
    routed: Any, x: Tensor, bias: Tensor, shape: Shape, valid: Tensor | None, factor: float, norm: bool
) -> None:
    scores = scores_of(x)
    choices = (scores + bias).tolist()
    expected = [chosen_by_hand(choice, shape) for choice in choices]
    assert routed.indices.tolist() == expected
    with np.errstate(all="ignore"):
        weights = [
            weights_by_hand(list(row[chosen]), factor, norm)
            for row, chosen in zip(scores.numpy(), expected, strict=True)
        ]
    assert same_bits(routed.weights, torch.tensor(np.array(weights, dtype=np.float32)).view(-1, shape.top_k))
    load = np.zeros(shape.experts, dtype=int)
    for t, chosen in enumerate(expected):
        load[chosen] += valid is None or bool(valid[t])
    assert routed.load.tolist() == load.tolist()


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal dtypes, shapes and bits, a NaN being equal to any other."""
    if a.is_floating_point():
        a, b = torch.where(a.isnan(), torch.nan, a), torch.where(b.isnan(), torch.nan, b)
        return a.dtype == b.dtype and torch.equal(a.view(torch.int32), b.view(torch.int32))
    return a.dtype == b.dtype and torch.equal(a, b)


class Case(NamedTuple):
    shape: Shape
    logits: Tensor
    bias: Tensor
    valid: Tensor | None


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Few different logits and biases, so that experts and groups often tie; NaN, infinities, huge biases."""
    shape = draw(st.sampled_from(SHAPES))
    logit = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, -90.0, 40.0, math.nan, math.inf, -math.inf])
    bias = st.sampled_from([0.0, -0.0, 0.25, -8.0, -1e6, 3e38, math.inf, -math.inf, math.nan])
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tokens = draw(st.integers(0, 5))
    logits = np.array(draw(st.lists(logit, min_size=1, max_size=4)), dtype=np.float32)
    biases = np.array(draw(st.lists(bias, min_size=1, max_size=3)), dtype=np.float32)
    x = random.choice(logits, (tokens, shape.experts))
    if draw(st.booleans()):
        x = x + random.standard_normal(x.shape, dtype=np.float32)
    valid = torch.tensor(random.random(tokens) < 0.5) if draw(st.booleans()) else None
    return Case(shape, torch.tensor(x), torch.tensor(random.choice(biases, shape.experts)), valid)


@settings(max_examples=200, **BACKEND_OF_ALL)
@given(case=cases(), factor=st.sampled_from([1.0, 2.5, -0.3]), norm=st.booleans())
def test_every_bit_by_hand(backend: str, case: Case, factor: float, norm: bool) -> None:
    shape, x, bias, valid = case
    routed = ops.route(
        x, bias, **shape.options(), routed_scaling_factor=factor, norm_topk_prob=norm, valid=valid
    )
    assert_routed_by_hand(routed, x, bias, shape, valid, factor, norm)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_backend_and_thread_count_equals_the_reference(
    shape: Shape, backend: str, rng: torch.Generator
) -> None:
    """Of our own sigmoids, the CPU's, over enough tokens for several threads."""
    x = torch.randn(500, shape.experts, generator=rng) * 3
    x[::7] = x[::7].round()  # ties
    bias = torch.randn(shape.experts, generator=rng) * 0.1
    valid = torch.rand(500, generator=rng) < 0.7
    options = {**shape.options(), "routed_scaling_factor": 2.5}
    with backends.on_cpu(), ops.using_cpu_capability("generic"):
        scores = scores_of(x)
    expected = reference.route_scores(scores, bias, valid, **options)
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        routed = ops.route(x, bias, **options, valid=valid)
        torch.set_num_threads(before)
        assert all(same_bits(a, b) for a, b in zip(routed, expected, strict=True)), threads


@pytest.mark.parametrize("shape", [Shape(5001, 5, 3, 2), Shape(12_600, 3, 4, 2)], ids=str)
def test_thousands_of_experts(shape: Shape, backend: str, rng: torch.Generator) -> None:
    """Rows of which a block of a GPU's threads has memory for one, and for none."""
    x = torch.randn(5, shape.experts, generator=rng).round(decimals=1)
    bias = torch.randn(shape.experts, generator=rng).round(decimals=1)
    options = {**shape.options(), "routed_scaling_factor": 2.5}
    with backends.on_cpu(), ops.using_cpu_capability("generic"):
        expected = ops.route(x, bias, **options)
    assert all(map(same_bits, ops.route(x, bias, **options), expected))


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_choice_and_weights_against_exact_sigmoids(
    shape: Shape, norm: bool, backend: str, rng: torch.Generator
) -> None:
    """Where no two choices and no two groups are closer than rounding moves them, FP64 chooses the same."""
    x = torch.randn(400, shape.experts, generator=rng) * 3
    bias = torch.randn(shape.experts, generator=rng) * 0.1 - 5
    options = {**shape.options(), "routed_scaling_factor": 2.5, "norm_topk_prob": norm}
    weights, indices, _ = ops.route(x, bias, **options)
    exact, expected, _ = reference.route(x.double(), bias.double(), **options)
    choice = torch.sigmoid(x.double()) + bias
    groups = choice.unflatten(1, (shape.n_groups, -1)).topk(min(2, shape.experts // shape.n_groups), dim=2)
    # Choices are below 8 in magnitude and their sums below 16: a half ulp of those, and the sigmoid's 2 ulp.
    apart = (least_gap(choice) > 2 * (2**-22 + 2**-22)) & (least_gap(groups.values.sum(2)) > 2**-19)
    assert apart.float().mean() > 0.5
    assert torch.equal(indices[apart], expected[apart])
    # Sigmoids within 4 * 2^-24, their sum within as much and one rounding for each of K additions, then a
    # division, the scale and the product.
    bound = (11 + shape.top_k) * 2**-24 * exact.abs()
    assert bool(((weights - exact).abs() <= bound)[apart].all())


def least_gap(x: Tensor) -> Tensor:
    """The smallest difference of two elements of each row."""
    gaps = x.sort(1).values.diff(dim=1)
    return gaps.min(1).values if gaps.shape[1] else torch.full((x.shape[0],), torch.inf)


def test_group_mask_is_minus_infinity_and_not_zero(backend: str) -> None:
    """Zero for the experts of dropped groups would win against choices that are all negative."""
    bias = torch.tensor([-9.0, -9, -9, -9, -5, -5, -9, -9])
    routed = ops.route(torch.zeros(1, 8), bias, top_k=2, n_groups=4, topk_groups=1, routed_scaling_factor=1.0)
    assert routed.indices.tolist() == [[4, 5]]
    assert routed.weights.tolist() == [[0.5, 0.5]]


def test_weights_are_not_recovered_from_biased_scores(backend: str) -> None:
    """(s + b) - b is 0 for b = 1e9, where s is 0.5."""
    x = torch.tensor([[0.0, -3.0, 2.0, 0.0]])
    bias = torch.tensor([1e9, 1e9, -1e9, -1e9])
    routed = ops.route(
        x, bias, top_k=2, n_groups=1, topk_groups=1, routed_scaling_factor=1.0, norm_topk_prob=False
    )
    assert routed.indices.tolist() == [[0, 1]]
    assert routed.weights[0].tolist() == scores_of(x)[0, :2].tolist()


def test_all_experts_equal(backend: str) -> None:
    """Groups and experts in order of their index."""
    routed = ops.route(
        torch.zeros(3, 256), torch.full((256,), -1.5), **SHAPES[-2].options(), routed_scaling_factor=2.0
    )
    assert routed.indices.tolist() == [list(range(8))] * 3
    assert routed.weights.tolist() == [[0.25] * 8] * 3


def test_fewer_finite_choices_than_top_k(backend: str) -> None:
    """After them come NaN, -inf and dropped groups alike, in order of their index."""
    x = torch.zeros(1, 32)
    x[0, 1:8] = math.nan
    bias = torch.zeros(32)
    bias[8:16] = -math.inf
    bias[16:] = -1
    routed = ops.route(x, bias, top_k=6, n_groups=4, topk_groups=2, routed_scaling_factor=1.0)
    # Group 0 scores 0.5 - inf, groups 1 and 0 tie at -inf, groups 2 and 3 score -1 and are kept.
    assert routed.indices.tolist() == [[16, 17, 18, 19, 20, 21]]
    bias[16:] = -math.inf
    routed = ops.route(x, bias, top_k=6, n_groups=4, topk_groups=2, routed_scaling_factor=1.0)
    assert routed.indices.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert bool(routed.weights.isnan().all())
    x[0, 1:8] = 0
    bias[1:8] = -math.inf
    routed = ops.route(x, bias, top_k=3, n_groups=4, topk_groups=2, routed_scaling_factor=3.0)
    assert routed.indices.tolist() == [[0, 1, 2]]
    assert routed.weights.tolist() == [[1, 1, 1]]


@settings(max_examples=60, **BACKEND_OF_ALL)
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**32 - 1))
def test_choices_are_different_experts_of_few_groups(backend: str, shape: Shape, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(20, shape.experts, generator=random).round(decimals=1)
    bias = torch.randn(shape.experts, generator=random) * 3 - 4
    _, indices, load = ops.route(x, bias, **shape.options(), routed_scaling_factor=1.0)
    for chosen in indices.tolist():
        assert len(set(chosen)) == shape.top_k
        assert len({e * shape.n_groups // shape.experts for e in chosen}) <= shape.topk_groups
    assert torch.equal(load, torch.bincount(indices.flatten(), minlength=shape.experts).int())


@settings(max_examples=40, **BACKEND_OF_ALL)
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**32 - 1))
def test_permuted_tokens_and_experts_are_permuted_results(backend: str, shape: Shape, seed: int) -> None:
    """Experts move within their group and groups among themselves; distinct choices, so that nothing ties."""
    random = torch.Generator().manual_seed(seed)
    x = torch.rand(20, shape.experts, generator=random).argsort(1) / 50
    bias = torch.zeros(shape.experts)
    tokens = torch.randperm(20, generator=random)
    size = shape.experts // shape.n_groups
    groups = torch.randperm(shape.n_groups, generator=random)
    experts = torch.cat([g * size + torch.randperm(size, generator=random) for g in groups])
    options = {**shape.options(), "routed_scaling_factor": 1.0}
    if (
        least_gap(x.sigmoid().unflatten(1, (shape.n_groups, -1)).topk(min(2, size)).values.sum(2)).min()
        < 1e-5
    ):
        options["topk_groups"] = shape.n_groups  # groups that might tie are all kept
    before, after = ops.route(x, bias, **options), ops.route(x[tokens][:, experts], bias, **options)
    assert torch.equal(after.weights, before.weights[tokens])
    assert torch.equal(experts[after.indices.long()], before.indices[tokens].long())
    assert torch.equal(after.load, before.load[experts])


def test_every_token_to_one_expert(threads: int, backend: str) -> None:
    x = torch.full((1000, 8), -4.0)
    x[:, 5] = 4
    routed = ops.route(x, torch.zeros(8), top_k=1, n_groups=4, topk_groups=2, routed_scaling_factor=1.0)
    assert routed.load.tolist() == [0, 0, 0, 0, 0, 1000, 0, 0]


def test_scores_that_all_underflow_give_finite_weights(backend: str) -> None:
    x = torch.full((1, 4), -200.0)
    routed = ops.route(x, torch.zeros(4), top_k=2, n_groups=1, topk_groups=1, routed_scaling_factor=1.0)
    assert routed.weights.tolist() == [[0, 0]]


def test_no_tokens(backend: str) -> None:
    routed = ops.route(
        torch.empty(0, 8), torch.zeros(8), top_k=2, n_groups=4, topk_groups=2, routed_scaling_factor=1.0
    )
    assert (routed.weights.shape, routed.indices.shape, routed.load.tolist()) == ((0, 2), (0, 2), [0] * 8)


def test_strides(backend: str, rng: torch.Generator) -> None:
    x, bias = torch.randn(50, 32, generator=rng), torch.randn(32, generator=rng)
    valid = torch.rand(50, generator=rng) < 0.5
    options = {"top_k": 4, "n_groups": 4, "topk_groups": 2, "routed_scaling_factor": 1.0}
    expected = ops.route(x, bias, valid=valid, **options)
    wide = torch.zeros(50, 40)
    wide[:, 3:35] = x
    apart = torch.stack([bias, bias], 1)[:, 1], torch.stack([valid, valid], 1)[:, 0]
    for logits in (x.T.contiguous().T, wide[:, 3:35], x[:1].expand(50, 32)):
        wanted = (
            expected if torch.equal(logits, x) else ops.route(logits.clone(), bias, valid=valid, **options)
        )
        routed = ops.route(logits, apart[0], valid=apart[1], **options)
        assert all(map(torch.equal, routed, wanted))


def test_flushing_denormals_changes_no_bit(backend: str) -> None:
    x = torch.linspace(-103, -85, 64).view(2, 32)
    options = {"top_k": 4, "n_groups": 4, "topk_groups": 2, "routed_scaling_factor": 1.0}
    expected = ops.route(x, torch.zeros(32), **options, norm_topk_prob=False)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    try:
        routed = ops.route(x, torch.zeros(32), **options, norm_topk_prob=False)
    finally:
        torch.set_flush_denormal(False)
    assert 0 < expected.weights.min() < torch.finfo(torch.float32).tiny
    assert all(map(same_bits, routed, expected))


@settings(max_examples=100, **BACKEND_OF_ALL)
@given(load=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=40), wide=st.booleans())
def test_router_bias_moves_by_exact_comparison(backend: str, load: list[int], wide: bool) -> None:
    """Loads up to 2^31 - 1 (as int64 up to 2^49): neither FP32 means nor int32 sums could compare them."""
    load = [count << 18 for count in load] if wide else load
    bias = torch.full((len(load),), 0.5)
    ops.update_router_bias_(bias, torch.tensor(load, dtype=torch.int64 if wide else torch.int32), 0.001)
    step = np.float32(0.001)
    for e, count in enumerate(load):
        sign = (count * len(load) < sum(load)) - (count * len(load) > sum(load))
        assert bias[e].item() == np.float32(0.5) + sign * step


def test_router_bias_of_several_layers_in_any_layout(backend: str) -> None:
    load = torch.tensor([[1, 2, 3], [9, 9, 9]])
    for bias in (torch.zeros(2, 3), torch.zeros(3, 2).T, torch.zeros(2, 6)[:, ::2]):
        ops.update_router_bias_(bias, load, 0.5)
        assert bias.tolist() == [[0.5, 0, -0.5], [0, 0, 0]]
        ops.update_router_bias_(bias, load.T.contiguous().T.int(), 0.25)
        assert bias.tolist() == [[0.75, 0, -0.75], [0, 0, 0]]
    empty = torch.zeros(2, 0)
    ops.update_router_bias_(empty, torch.zeros(2, 0, dtype=torch.int32), 0.5)


def test_router_bias_equals_the_reference(backend: str, rng: torch.Generator) -> None:
    load = torch.randint(0, 100, (4, 64), generator=rng, dtype=torch.int32)
    bias = torch.randn(4, 64, generator=rng)
    expected = bias.clone()
    reference.update_router_bias_(expected, load, 0.013)
    ops.update_router_bias_(bias, load, 0.013)
    assert torch.equal(bias, expected)
