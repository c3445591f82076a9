"""route, update_router_bias_, sequence_balance_loss against loops in plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode

from deepseek_ext import ops

OPS = torch.ops.deepseek_ext
SHAPES = [  # experts, top_k, n_groups, topk_groups
    (8, 2, 4, 2),
    (32, 4, 4, 2),
    (6, 3, 1, 1),
    (6, 2, 6, 3),  # groups of one expert
    (8, 8, 2, 2),
    (9, 1, 3, 1),
    (6, 4, 3, 2),  # every expert of the kept groups
]


def chosen_by_hand(choice: list[float], top_k: int, n_groups: int, topk_groups: int) -> list[int]:
    """One token's experts, best first; Python's sort keeps equal keys in order of their index."""
    choice = [-math.inf if math.isnan(c) else c for c in choice]
    size = len(choice) // n_groups

    def group_score(g: int) -> float:
        largest = sorted(choice[g * size : (g + 1) * size], reverse=True)[:2]
        return float(np.sum(np.array(largest, dtype=np.float32)))  # ties are those of FP32

    kept = sorted(range(n_groups), key=group_score, reverse=True)[:topk_groups]
    masked = [c if e // size in kept else -math.inf for e, c in enumerate(choice)]
    return sorted(range(len(choice)), key=lambda e: masked[e], reverse=True)[:top_k]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def run(x: Tensor, bias: Tensor, shape: tuple[int, int, int, int], **options: Any) -> Any:
    _, top_k, n_groups, topk_groups = shape
    options = {"routed_scaling_factor": 1.0, **options}
    return ops.route(x, bias, top_k=top_k, n_groups=n_groups, topk_groups=topk_groups, **options)


Case = tuple[tuple[int, int, int, int], list[list[float]], list[float], list[bool]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Choices on a coarse grid, so that experts and groups often tie; strongly negative biases; NaN."""
    shape = draw(st.sampled_from(SHAPES))
    logit = st.sampled_from([-2.0, -1.0, 0.0, 1.0, math.nan])
    token = st.lists(logit, min_size=shape[0], max_size=shape[0])
    logits = draw(st.lists(token, min_size=1, max_size=4))
    bias = st.sampled_from([0.0, 0.25, -8.0, -1e6])
    biases = draw(st.lists(bias, min_size=shape[0], max_size=shape[0]))
    return shape, logits, biases, draw(st.lists(st.booleans(), min_size=len(logits), max_size=len(logits)))


@settings(max_examples=300, deadline=None)
@given(cases())
def test_choice_and_load(case: Case) -> None:
    shape, logits, biases, valid = case
    x, bias = torch.tensor(logits), torch.tensor(biases)
    routed = run(x, bias, shape, valid=torch.tensor(valid))
    choices = (torch.sigmoid(x) + bias).tolist()
    expected = [chosen_by_hand(choice, *shape[1:]) for choice in choices]
    assert routed.indices.tolist() == expected
    counts = [sum(e in row for row, v in zip(expected, valid, strict=True) if v) for e in range(shape[0])]
    assert routed.load.tolist() == counts
    assert (routed.weights.dtype, routed.indices.dtype, routed.load.dtype) == (
        torch.float32,
        torch.int32,
        torch.int32,
    )


@pytest.mark.parametrize("shape", [*SHAPES, (256, 8, 8, 4)])
@pytest.mark.parametrize("norm", [True, False])
def test_weights(shape: tuple[int, int, int, int], norm: bool, rng: torch.Generator) -> None:
    x = torch.randn(40, shape[0], generator=rng) * 3
    bias = torch.randn(shape[0], generator=rng) * 0.1 - 5
    weights, indices, load = run(x, bias, shape, norm_topk_prob=norm, routed_scaling_factor=2.5)
    assert int(load.sum()) == 40 * shape[1]
    choices = (torch.sigmoid(x) + bias).tolist()
    for t in range(40):
        assert indices[t].tolist() == chosen_by_hand(choices[t], *shape[1:])
        scores = [sigmoid(x[t, e].item()) for e in indices[t].tolist()]
        total = sum(scores) + 1e-20 if norm else 1.0
        for k, score in enumerate(scores):
            # sigmoid, K - 1 additions, a division and a product, each within 2 ulp
            bound = (shape[1] + 6) * 2**-24 * 2.5 * score / total
            assert abs(weights[t, k].item() - 2.5 * score / total) <= bound


def test_a_negative_bias_never_lets_a_dropped_group_in() -> None:
    """Zero instead of -inf for the dropped groups would win against choices that are all negative."""
    x = torch.zeros(1, 8)
    bias = torch.tensor([-9.0, -9, -9, -9, -5, -5, -9, -9])
    routed = ops.route(x, bias, top_k=2, n_groups=4, topk_groups=1, routed_scaling_factor=1.0)
    assert routed.indices.tolist() == [[4, 5]]
    assert routed.weights.tolist() == [[0.5, 0.5]]


def test_every_token_to_one_expert() -> None:
    x = torch.full((1000, 8), -4.0)
    x[:, 5] = 4
    routed = ops.route(x, torch.zeros(8), top_k=1, n_groups=4, topk_groups=2, routed_scaling_factor=1.0)
    assert routed.load.tolist() == [0, 0, 0, 0, 0, 1000, 0, 0]


def test_scores_that_all_underflow_give_finite_weights() -> None:
    x = torch.full((1, 4), -200.0)
    routed = ops.route(x, torch.zeros(4), top_k=2, n_groups=1, topk_groups=1, routed_scaling_factor=1.0)
    assert routed.weights.tolist() == [[0, 0]]


def test_no_tokens() -> None:
    routed = run(torch.empty(0, 8), torch.zeros(8), (8, 2, 4, 2))
    assert (routed.weights.shape, routed.load.tolist()) == ((0, 2), [0] * 8)


@pytest.mark.parametrize("norm", [True, False])
def test_route_gradient(norm: bool, rng: torch.Generator) -> None:
    x = torch.randn(7, 8, generator=rng, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(8, generator=rng)

    def weights(x: Tensor) -> Tensor:
        return run(x, bias, (8, 3, 4, 2), norm_topk_prob=norm, routed_scaling_factor=2.5).weights

    assert torch.autograd.gradcheck(weights, (x,))


def test_bias_gets_no_gradient(rng: torch.Generator) -> None:
    bias = torch.zeros(8, requires_grad=True)
    x = torch.randn(5, 8, generator=rng, requires_grad=True)
    run(x, bias, (8, 2, 4, 2)).weights.square().sum().backward()
    assert bias.grad is None
    assert x.grad is not None


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=40))
def test_router_bias_moves_by_exact_comparison(load: list[int]) -> None:
    """Loads up to 2^31 - 1: neither FP32 means nor int32 sums could compare them."""
    bias = torch.full((len(load),), 0.5)
    ops.update_router_bias_(bias, torch.tensor(load, dtype=torch.int32), 0.001)
    step = np.float32(0.001)
    for e, count in enumerate(load):
        sign = (count * len(load) < sum(load)) - (count * len(load) > sum(load))
        assert bias[e].item() == np.float32(0.5) + sign * step


def test_router_bias_of_several_layers_at_once() -> None:
    load = torch.tensor([[1, 2, 3], [9, 9, 9]])
    bias = torch.zeros(2, 3)
    ops.update_router_bias_(bias, load, 0.5)
    assert bias.tolist() == [[0.5, 0, -0.5], [0, 0, 0]]


def balance_by_hand(
    logits: list[list[float]], indices: list[list[int]], num_sequences: int, alpha: float, valid: list[bool]
) -> float:
    experts, top_k = len(logits[0]), len(indices[0])
    length = len(logits) // num_sequences
    total = 0.0
    for b in range(num_sequences):
        tokens = [t for t in range(b * length, (b + 1) * length) if valid[t]]
        for e in range(experts):
            count = sum(e in indices[t] for t in tokens)
            shares = [sigmoid(logits[t][e]) / sum(map(sigmoid, logits[t])) for t in tokens]
            if tokens:
                total += count * experts / (top_k * len(tokens)) * sum(shares) / len(tokens)
    return alpha * total / num_sequences


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("num_sequences", [1, 3])
def test_sequence_balance_loss(masked: bool, num_sequences: int, rng: torch.Generator) -> None:
    x = torch.randn(15, 8, generator=rng, dtype=torch.float64, requires_grad=True)
    indices = run(x, torch.zeros(8), (8, 3, 4, 2)).indices
    valid = torch.rand(15, generator=rng) < 0.6 if masked else torch.ones(15, dtype=torch.bool)
    if masked:
        valid[:5] = False  # a sequence of nothing but padding
    options = {"num_sequences": num_sequences, "alpha": 0.01, "valid": valid if masked else None}
    loss = ops.sequence_balance_loss(x, indices, **options)
    expected = balance_by_hand(x.tolist(), indices.tolist(), num_sequences, 0.01, valid.tolist())
    assert loss.item() == pytest.approx(expected, rel=1e-13)
    single = ops.sequence_balance_loss(x.detach().float(), indices, **options)
    assert single.item() == pytest.approx(expected, rel=40 * 2**-24)  # at most 15 + 8 + 15 rounded terms
    assert torch.autograd.gradcheck(lambda x: ops.sequence_balance_loss(x, indices, **options), (x,))


def test_balance_loss_is_least_when_balanced() -> None:
    """Evenly chosen experts with equal scores: sum_e f_e P_e = 1; one favourite: E / K times its share."""
    even = ops.sequence_balance_loss(
        torch.zeros(4, 4), torch.tensor([[0, 1], [2, 3], [0, 2], [1, 3]]).int(), num_sequences=1, alpha=1.0
    )
    assert even.item() == 1
    skewed = torch.tensor([[20.0, 20, -20, -20]] * 4)
    loss = ops.sequence_balance_loss(skewed, torch.tensor([[0, 1]] * 4).int(), num_sequences=1, alpha=1.0)
    assert loss.item() == pytest.approx(2)


def test_padding_may_hold_nan() -> None:
    x = torch.zeros(4, 4)
    x[2:] = math.nan
    x.requires_grad_()
    indices = torch.tensor([[0], [1], [0], [0]]).int()
    valid = torch.tensor([True, True, False, False])
    loss = ops.sequence_balance_loss(x, indices, num_sequences=1, alpha=1.0, valid=valid)
    loss.backward()
    assert loss.item() == 1
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


def test_opcheck(rng: torch.Generator) -> None:
    x = torch.randn(12, 8, generator=rng, requires_grad=True)
    bias, valid = torch.randn(8, generator=rng), torch.rand(12, generator=rng) < 0.5
    options = {"top_k": 2, "n_groups": 4, "topk_groups": 2, "routed_scaling_factor": 2.5}
    torch.library.opcheck(OPS.route.default, (x, bias), options)
    torch.library.opcheck(OPS.route.default, (x, bias, valid), {**options, "norm_topk_prob": False})
    indices = ops.route(x, bias, **options).indices
    balance = {"num_sequences": 3, "alpha": 0.1}
    torch.library.opcheck(OPS.sequence_balance_loss.default, (x, indices), balance)
    torch.library.opcheck(OPS.sequence_balance_loss.default, (x, indices, valid), balance)
    torch.library.opcheck(OPS.update_router_bias_.default, (bias, torch.arange(8), 0.1))


def routed(logits: Tensor, bias: Tensor, *args: int, **options: Any) -> Callable[[], Any]:
    return lambda: run(logits, bias, (8, *args), **options)


def balance(*args: Any, **options: Any) -> Callable[[], Any]:
    return lambda: ops.sequence_balance_loss(*args, **{"num_sequences": 2, "alpha": 0.1, **options})


X, B, I = torch.zeros(6, 8), torch.zeros(8), torch.zeros(6, 2, dtype=torch.int32)
ERRORS: list[tuple[Callable[[], Any], str]] = [
    (routed(X.bfloat16(), B, 2, 4, 2), "route: logits must be float32, got bfloat16"),
    (routed(X[0], B, 2, 4, 2), r"route: logits must be \[T, E\], got shape \[8\]"),
    (routed(X, B.bfloat16(), 2, 4, 2), "route: bias must be float32, got bfloat16"),
    (routed(X, B[:7], 2, 4, 2), r"route: bias must be \[E\] = \[8\], got \[7\]"),
    (routed(X, B, 2, 3, 2), "n_groups must divide the 8 experts into groups of equal size, got 3"),
    (routed(X, B, 2, 0, 2), "n_groups must divide the 8 experts into groups of equal size, got 0"),
    (routed(X, B, 2, 4, 5), r"topk_groups must lie in \[1, n_groups = 4\], got 5"),
    (routed(X, B, 5, 4, 2), r"top_k must lie in \[1, 4\], the experts of topk_groups = 2 groups, got 5"),
    (routed(X, B, 0, 4, 2), r"top_k must lie in \[1, 4\]"),
    (routed(X, B, 2, 4, 2, valid=B), "route: valid must be bool, got float32"),
    (
        routed(X, B, 2, 4, 2, valid=B.bool()),
        r"route: valid must be \[T\] = \[6\], one for each token, got \[8\]",
    ),
    (lambda: ops.update_router_bias_(B.double(), B.int(), 0.1), "bias must be float32, got float64"),
    (lambda: ops.update_router_bias_(B, B, 0.1), "load must be int32 or int64, got float32"),
    (lambda: ops.update_router_bias_(B, B[:7].int(), 0.1), r"got \[7\] and \[8\]"),
    (balance(X.half(), I), "sequence_balance_loss: logits must be float32, got float16"),
    (balance(X, I.long()), "sequence_balance_loss: indices must be int32, got int64"),
    (balance(X, I[:5]), r"indices must be \[T, K\] with T = 6 as in logits, got \[5, 2\]"),
    (balance(X, I, num_sequences=4), "must divide the 6 tokens into sequences of equal length, got 4"),
    (balance(X, I, valid=B.bool()), r"valid must be \[T\] = \[6\]"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_argument_errors_are_the_same_from_real_and_fake(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as real:
        call()
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(ValueError, match=message) as fake:
        call()
    assert str(real.value) == str(fake.value)
