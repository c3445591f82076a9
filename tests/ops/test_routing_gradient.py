"""The balance loss, and the gradients of route and of it, against the FP64 reference's autograd.

u is 2^-24, the relative error of one rounding. A sigmoid is within 2 ulp, hence 4 u.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import backends
import pytest
import torch
from cpu_tiers import CPU_TIERS
from torch import Tensor

from deepseek_ext import ops
from deepseek_ext.reference import routing as reference

U = 2.0**-24
EXACT = 2.0**-50  # relative to s: what FP64 autograd loses in its 1 - s
TINY = 2.0**-120  # what rounding to subnormals adds

SHAPES = [(8, 3, 4, 2), (1, 1, 1, 1), (33, 7, 3, 2), (40, 17, 1, 1), (256, 8, 8, 4)]


def on_every_thread_count(function: Callable[[], Tensor], *, as_on_cpu: bool) -> Tensor:
    """The result, which must have the same bits for any number of threads, and those of the generic tier."""
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(function())
        torch.set_num_threads(before)
        assert torch.equal(results[-1].nan_to_num(7), results[0].nan_to_num(7)), threads
    with backends.on_cpu(), ops.using_cpu_capability("generic"):
        wanted = function()
    assert not as_on_cpu or torch.equal(results[0].nan_to_num(7), wanted.nan_to_num(7))
    return results[0]


def assert_within(actual: Tensor, exact: Tensor, bound: Tensor) -> None:
    error = (actual.double() - exact).abs()
    worst = int((error - bound).argmax())
    assert bool((error <= bound).all()), (
        f"at {worst}: got {actual.flatten()[worst]}, exact {exact.flatten()[worst]}, "
        f"error {error.flatten()[worst]}, bound {bound.flatten()[worst]}"
    )


def logits_of(tokens: int, experts: int, rng: torch.Generator) -> Tensor:
    """Of all magnitudes: scores from almost 0 to almost 1."""
    return (
        torch.randn(tokens, experts, generator=rng)
        * torch.tensor([0.1, 1, 5, 20]).repeat(tokens)[:tokens, None]
    )


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_route_gradient(
    shape: tuple[int, int, int, int], norm: bool, backend: str, rng: torch.Generator
) -> None:
    experts, top_k, n_groups, topk_groups = shape
    x, bias = logits_of(300, experts, rng), torch.randn(experts, generator=rng)
    grad = torch.randn(300, top_k, generator=rng)
    factor = 2.5
    options = {"top_k": top_k, "n_groups": n_groups, "topk_groups": topk_groups, "norm_topk_prob": norm}
    indices = ops.route(x, bias, **options, routed_scaling_factor=factor).indices.long()

    def ours() -> Tensor:
        leaf = x.clone().requires_grad_()
        weights = ops.route(leaf, bias, **options, routed_scaling_factor=factor).weights
        return torch.autograd.grad(weights, leaf, grad)[0]

    # The reference on the experts that were chosen, so that near ties make no difference.
    leaf = x.double().requires_grad_()
    everything = {"top_k": top_k, "n_groups": 1, "topk_groups": 1, "norm_topk_prob": norm}
    chosen = torch.sigmoid(leaf).gather(1, indices)
    order = torch.arange(top_k, 0, -1, dtype=torch.float64)  # a bias that keeps their order
    weights, again, _ = reference.route_scores(chosen, order, **everything, routed_scaling_factor=factor)
    assert torch.equal(again, torch.arange(top_k).int().expand(300, top_k))
    (exact,) = torch.autograd.grad(weights, leaf, grad.double())

    # factor * s (1 - s) (g - mean) / total with mean = sum g s / total, or without mean and total. Roundings:
    # s and 1 - s 8; factor and three products 4; of mean, whose terms have either sign, K + 4 in the sum and
    # K + 5 in the division; 1 in the difference; K + 5 in the division by total.
    s, g = chosen.detach(), grad.double()
    total = s.sum(1, keepdim=True) + reference.TINY
    magnitude = (g.abs() + (g.abs() * s).sum(1, keepdim=True) / total) / total if norm else g.abs()
    rest = torch.sigmoid(-x.double()).gather(1, indices)
    element = ((3 * top_k + 27) * U * rest + EXACT) * factor * s * magnitude
    bound = torch.zeros_like(exact).scatter(1, indices, element + TINY)
    assert_within(on_every_thread_count(ours, as_on_cpu=True), exact, bound)
    constant = norm and top_k == 1  # the one weight is the factor, but for what keeps the division finite
    assert constant or (exact.abs() > 1000 * bound).any()  # an error of a thousandth would be seen


def test_bias_gets_no_gradient(backend: str, rng: torch.Generator) -> None:
    bias = torch.zeros(8, requires_grad=True)
    x = torch.randn(5, 8, generator=rng, requires_grad=True)
    options = {"top_k": 2, "n_groups": 4, "topk_groups": 2, "routed_scaling_factor": 1.0}
    ops.route(x, bias, **options).weights.square().sum().backward()
    assert bias.grad is None
    assert x.grad is not None
    assert int((x.grad != 0).sum()) == 10


def test_route_gradient_where_all_scores_underflow(backend: str) -> None:
    x = torch.full((1, 4), -200.0, requires_grad=True)
    options = {"top_k": 2, "n_groups": 1, "topk_groups": 1, "routed_scaling_factor": 1.0}
    ops.route(x, torch.zeros(4), **options).weights.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[0, 0, 0, 0]]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def balance_by_hand(
    logits: list[list[float]], indices: list[list[int]], num_sequences: int, alpha: float, valid: list[bool]
) -> float:
    experts, top_k = len(logits[0]), len(indices[0])
    length = len(logits) // num_sequences
    total = 0.0
    for b in range(num_sequences):
        tokens = [t for t in range(b * length, (b + 1) * length) if valid[t]]
        scores = [[sigmoid(x) for x in logits[t]] for t in tokens]
        for e in range(experts):
            count = sum(indices[t].count(e) for t in tokens)
            share = sum(row[e] / sum(row) for row in scores)
            if tokens:
                total += count * experts / (top_k * len(tokens)) * share / len(tokens)
    return alpha * total / num_sequences


BALANCE_SHAPES = [  # tokens, sequences, experts, top_k
    (15, 3, 8, 3),
    (15, 1, 8, 3),
    (600, 2, 33, 5),  # more than a block of 128 tokens a sequence, the last one short
    (512, 4, 16, 4),
    (130, 1, 256, 8),
    (3, 3, 1, 1),
]


def balance_case(
    shape: tuple[int, int, int, int], masked: bool, rng: torch.Generator
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    tokens, sequences, experts, top_k = shape
    x = logits_of(tokens, experts, rng)
    indices = torch.rand(tokens, experts, generator=rng).argsort(1)[:, :top_k].int()
    valid = torch.rand(tokens, generator=rng) < 0.6
    valid[: tokens // sequences // 2] = False
    if sequences > 1:
        valid[: tokens // sequences] = False  # a sequence of nothing but padding
    return x, indices, {"num_sequences": sequences, "valid": valid if masked else None}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", BALANCE_SHAPES, ids=str)
def test_sequence_balance_loss(
    shape: tuple[int, int, int, int], masked: bool, backend: str, rng: torch.Generator
) -> None:
    x, indices, options = balance_case(shape, masked, rng)
    valid = options["valid"] if masked else torch.ones(len(x), dtype=torch.bool)
    exact = balance_by_hand(x.tolist(), indices.tolist(), shape[1], 0.01, valid.tolist())
    expected = reference.sequence_balance_loss(x.double(), indices, **options, alpha=0.01)
    assert expected.item() == pytest.approx(exact, rel=1e-13, abs=1e-300)
    loss = on_every_thread_count(
        lambda: ops.sequence_balance_loss(x, indices, **options, alpha=0.01),
        as_on_cpu=backend in CPU_TIERS,  # elsewhere experts are added in another order
    )
    # No term is negative. A share: sigmoid 4, the row's sum of them 4 + E/16 + 4, the quotient 1; up to 127
    # additions in a block; 1 for the result. The rest is FP64.
    assert abs(loss.item() - exact) <= (14 + shape[2] / 16 + 127) * U * exact


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", BALANCE_SHAPES, ids=str)
def test_sequence_balance_loss_gradient(
    shape: tuple[int, int, int, int], masked: bool, backend: str, rng: torch.Generator
) -> None:
    x, indices, options = balance_case(shape, masked, rng)
    alpha, outer = 0.01, 3.0

    def ours() -> Tensor:
        leaf = x.clone().requires_grad_()
        loss = ops.sequence_balance_loss(leaf, indices, **options, alpha=alpha)
        return torch.autograd.grad(loss * outer, leaf)[0]

    leaf = x.double().requires_grad_()
    loss = reference.sequence_balance_loss(leaf, indices, **options, alpha=alpha)
    (exact,) = torch.autograd.grad(loss * outer, leaf)

    # p (f - mean) (1 - s) with p = s / total, mean = sum f s / total, f = outer alpha / sequences f_e / T.
    # Roundings: p 4 + (E/16 + 8) + 1, 1 - s 4, two products 2, the difference 1; of mean f 1 and s 4, a
    # product 1, the sum E/16 + 4, its divisor E/16 + 8, the quotient 1.
    tokens, sequences, experts, _ = shape
    s, valid = torch.sigmoid(x.double()), options["valid"] if masked else torch.ones(tokens, dtype=torch.bool)
    p = s / s.sum(1, keepdim=True)
    chosen = torch.zeros_like(s).scatter_add(1, indices.long(), torch.ones_like(s)) * valid[:, None]
    length = valid.view(sequences, -1).sum(1).clamp(min=1).double()
    f = chosen.view(sequences, -1, experts).sum(1) * (experts / shape[3]) / length[:, None] ** 2
    f = (f * alpha * outer / sequences).repeat_interleave(tokens // sequences, 0)
    magnitude = p * (f + (f * p).sum(1, keepdim=True))
    bound = ((3 * experts / 16 + 40) * U * torch.sigmoid(-x.double()) + EXACT) * magnitude + TINY
    actual = on_every_thread_count(ours, as_on_cpu=True)
    assert_within(actual, exact, bound * valid[:, None])
    assert experts == 1 or (exact.abs() > 1000 * bound).any()  # an error of a thousandth would be seen
    assert not actual[~valid].any()


def test_balance_loss_is_least_when_balanced(backend: str) -> None:
    """Evenly chosen experts with equal scores: sum_e f_e P_e = 1; one favourite: E / K times its share."""
    even = ops.sequence_balance_loss(
        torch.zeros(4, 4), torch.tensor([[0, 1], [2, 3], [0, 2], [1, 3]]).int(), num_sequences=1, alpha=1.0
    )
    assert even.item() == 1
    skewed = torch.tensor([[20.0, 20, -20, -20]] * 4)
    loss = ops.sequence_balance_loss(skewed, torch.tensor([[0, 1]] * 4).int(), num_sequences=1, alpha=1.0)
    assert loss.item() == pytest.approx(2)


def test_padding_may_hold_nan(backend: str) -> None:
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
    assert not x.grad[2:].any()


def test_no_tokens_and_strides(backend: str, rng: torch.Generator) -> None:
    empty = torch.empty(0, 4, requires_grad=True)
    loss = ops.sequence_balance_loss(empty, torch.empty(0, 2).int(), num_sequences=2, alpha=1.0)
    loss.backward()
    assert loss.item() == 0
    x, indices, options = balance_case((60, 2, 16, 4), True, rng)
    expected = ops.sequence_balance_loss(x, indices, **options, alpha=0.5)
    options["valid"] = torch.stack([options["valid"]] * 2, 1)[:, 0]
    for logits in (x.T.contiguous().T, torch.stack([x, x], 1)[:, 1]):
        leaf = logits.detach().requires_grad_()
        loss = ops.sequence_balance_loss(leaf, indices.T.contiguous().T, **options, alpha=0.5)
        assert loss.item() == expected.item()
        grad = torch.autograd.grad(loss, leaf)[0]
        copy = x.clone().requires_grad_()
        assert torch.equal(
            grad, torch.autograd.grad(ops.sequence_balance_loss(copy, indices, **options, alpha=0.5), copy)[0]
        )
