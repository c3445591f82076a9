"""Dispatch and combine between four processes: against the reference's bits and a per-expert oracle."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from exchange_inputs import EXPERTS, MODES, ROUTINGS, batch, by_every_expert, expert_group, expert_of_rows
from ranks import WORLD, Place, Ranks
from torch import Tensor

from deepseek_ext import parallel
from deepseek_ext.ops.moe_ffn import moe_ffn_experts
from deepseek_ext.parallel import ExpertGroup
from deepseek_ext.reference import exchange as reference

SHARE = EXPERTS // WORLD


def same(got: Tensor, wanted: Tensor) -> None:
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    assert torch.equal(got, wanted), f"{(got != wanted).sum()} of {got.numel()} elements differ"


def sends_what_the_reference_says(place: Place) -> int:
    cases = 0
    for mode, routing, dtype in itertools.product(MODES, ROUTINGS, (torch.float32, torch.bfloat16)):
        x, weights, indices = batch(routing, dtype=dtype)
        plan = parallel.create_routing(indices[place.rank], EXPERTS, expert_group(place, mode))
        got = parallel.dispatch(x[place.rank], weights[place.rank], plan)
        wanted = reference.dispatch(x, weights, indices, EXPERTS)
        for one, other in zip(got, wanted[place.rank], strict=True):
            same(one, other)
        rng = torch.Generator().manual_seed(7)
        answers = [torch.randn(rows.shape, generator=rng).to(dtype) for rows, *_ in wanted]
        node = None if mode == "flat" else 2
        combined = reference.combine(answers, indices, EXPERTS, node)[place.rank]
        same(parallel.combine(answers[place.rank], plan), combined)
        cases += 1
    return cases


def test_rows_arrive_as_the_reference_says(ranks: Ranks) -> None:
    """In all three modes: bits, the order of rows included; so the two levels equal the flat exchange that
    adds node by node."""
    assert ranks.run(sends_what_the_reference_says) == [len(MODES) * len(ROUTINGS) * 2] * WORLD


def layer(x: Tensor, weights: Tensor, indices: Tensor, group: ExpertGroup) -> Tensor:
    routing = parallel.create_routing(indices, EXPERTS, group)
    rows, row_weights, offs = parallel.dispatch(x, weights, routing)
    expert = expert_of_rows(offs, group.rank * EXPERTS // group.size)[:, None]
    return parallel.combine(row_weights[:, None] * torch.sin(rows + expert) * (expert + 1), routing)


def agrees_with_every_expert(place: Place) -> float:
    worst = 0.0
    groups = [expert_group(place, mode) for mode in MODES]
    groups += [ExpertGroup.flat(place.groups[size]) for size in (1, 2)]
    for group, routing in itertools.product(groups, ROUTINGS):
        x, weights, indices = (given[place.rank] for given in batch(routing))
        x.requires_grad_(), weights.requires_grad_()
        y = layer(x, weights, indices, group)
        wanted = by_every_expert(x, weights, indices)
        grad = torch.randn(y.shape)
        got = (y, *torch.autograd.grad(y, (x, weights), grad))
        exact = (wanted, *torch.autograd.grad(wanted, (x, weights), grad.double()))
        for name, one, other in zip(("y", "x", "weights"), got, exact, strict=True):
            if one.numel():
                error = float((one - other).abs().max() / other.abs().max().clamp_min(1e-30))
                assert error < 1e-6, f"{group}, {routing}: {name} is off by {error}"
                worst = max(worst, error)
    return worst


def test_forward_and_backward_against_every_expert(ranks: Ranks) -> None:
    """Over 1, 2 and 4 ranks, each with tokens of its own."""
    assert 0 < max(ranks.run(agrees_with_every_expert)) < 1e-6


def repeats_its_bits(place: Place) -> None:
    x, weights, indices = (given[place.rank] for given in batch("uneven", dtype=torch.bfloat16))
    for mode in MODES:
        results = []
        for _ in range(3):
            tokens, gates = x.clone().requires_grad_(), weights.clone().requires_grad_()
            y = layer(tokens, gates, indices, expert_group(place, mode))
            y.float().square().sum().backward()
            results.append((y.detach(), tokens.grad, gates.grad))
        for result in results[1:]:
            for one, other in zip(result, results[0], strict=True):
                assert one is not None
                assert other is not None
                same(one, other)


def test_the_same_bits_every_time(ranks: Ranks) -> None:
    ranks.run(repeats_its_bits)


def starts_and_finishes(place: Place) -> None:
    """Several exchanges under way at once, finished in another order, equal one after another."""
    for mode in MODES:
        group = expert_group(place, mode)
        sent, wanted = [], []
        for i, routing in enumerate(ROUTINGS):
            x, weights, indices = (given[place.rank] for given in batch(routing, seed=i))
            plan = parallel.create_routing(indices, EXPERTS, group)
            wanted.append(parallel.dispatch(x, weights, plan))
            sent.append((x, weights, plan))
        flying = [parallel.dispatch_start(*tokens) for tokens in sent]
        back = {}
        for i in reversed(range(len(sent))):
            rows = parallel.dispatch_finish(flying[i])
            for one, other in zip(rows, wanted[i], strict=True):
                same(one, other)
            back[i] = parallel.combine_start(rows.rows, sent[i][2])
        for i, (*_, plan) in enumerate(sent):
            same(parallel.combine_finish(back[i]), parallel.combine(wanted[i].rows, plan))


def test_asynchronous_equals_synchronous(ranks: Ranks) -> None:
    ranks.run(starts_and_finishes)


def fills_memory(place: Place) -> None:
    """What torch then writes into every new tensor must reach none that an exchange still writes to."""
    x, weights, indices = (given[place.rank] for given in batch("uneven", hidden=4096))
    group = expert_group(place, "flat")
    wanted = layer(x, weights, indices, group)
    torch.use_deterministic_algorithms(True)
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        for _ in range(20):
            plan = parallel.create_routing(indices, EXPERTS, group)
            sent = parallel.dispatch_start(x, weights, plan)
            noise = [torch.empty_like(sent.flying) for _ in range(4)]  # filled while rows are under way
            rows, row_weights, offs = parallel.dispatch_finish(sent)
            expert = expert_of_rows(offs, place.rank * SHARE)[:, None]
            rows = row_weights[:, None] * torch.sin(rows + expert) * (expert + 1)
            back = parallel.combine_start(rows, plan)
            noise += [torch.empty_like(back.flying) for _ in range(4)]
            same(parallel.combine_finish(back), wanted)
            assert all(bool((n == 255).all()) for n in noise), "memory was not filled"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before


def test_nan_fill_of_deterministic_algorithms_does_not_race_with_the_exchange(ranks: Ranks) -> None:
    ranks.run(fills_memory)


def refuses(place: Place) -> list[str]:
    group = ExpertGroup.flat(place.groups[1])
    x, weights, indices = (given[2] for given in batch("uneven"))
    plan = parallel.create_routing(indices, EXPERTS, group)
    sent = parallel.dispatch_start(x, weights, plan)
    rows = parallel.dispatch_finish(sent).rows
    back = parallel.combine_start(rows, plan)
    parallel.combine_finish(back)
    tiles = parallel.dispatch_start(x, weights, plan, quantise=True)
    experts = torch.randn(EXPERTS, 16, x.shape[1]), torch.randn(EXPERTS, x.shape[1], 8)
    parallel.combine_finish(moe_ffn_experts(tiles, *experts))

    def message(call: Callable[[], object]) -> str:
        with pytest.raises(ValueError, match=": ") as caught:
            call()
        return str(caught.value)

    everyone = place.groups[WORLD]
    return [
        message(lambda: parallel.create_routing(indices.long(), EXPERTS, group)),
        message(lambda: parallel.create_routing(indices[0], EXPERTS, group)),
        message(lambda: parallel.create_routing(indices, 6, everyone)),
        message(lambda: parallel.create_routing(indices, EXPERTS, "gloo")),  # type: ignore[arg-type]
        message(lambda: parallel.create_routing(indices + EXPERTS, EXPERTS, group)),
        message(lambda: parallel.dispatch(x.half(), weights, plan)),
        message(lambda: parallel.dispatch(x[1:], weights, plan)),
        message(lambda: parallel.dispatch(x, weights[:, 1:], plan)),
        message(lambda: parallel.dispatch(x, weights.double(), plan)),
        message(lambda: parallel.combine(rows[1:], plan)),
        message(lambda: parallel.combine(rows.double(), plan)),
        message(lambda: parallel.dispatch_finish(sent)),
        message(lambda: parallel.combine_finish(back)),
        message(lambda: moe_ffn_experts(tiles, *experts)),
        message(lambda: ExpertGroup.flat(everyone, order="node", ranks_per_node=3)),
        message(lambda: ExpertGroup.flat(everyone, order="size")),  # type: ignore[arg-type]
    ]


def test_arguments_that_do_not_fit(ranks: Ranks) -> None:
    starts = [
        "create_routing: indices must be int32, got int64",
        "create_routing: indices must be [T, K] with K >= 1, got shape [3]",
        "create_routing: num_experts must be a multiple of the group's 4 ranks, up to 32767, got 6",
        "create_routing: group must be of type ExpertGroup or ProcessGroup, got str",
        "create_routing: indices must lie in [-1, 8), got",
        "dispatch: x must be bfloat16 or float32, got float16",
        "dispatch: x must be [T, H] with the T = 17 of routing, got shape [16, 72]",
        "dispatch: weights must be [T, K] = [17, 3], got [17, 2]",
        "dispatch: weights must be float32, got float64",
        "combine: rows must be [M, H] with M = 51, got shape [50, 72]",
        "combine: rows must be bfloat16 or float32, got float64",
        "dispatch_finish: what was started must be finished once, got it a second time; start another",
        "combine_finish: what was started must be finished once, got it a second time; start another",
        "moe_ffn_experts: what was started must be finished once, got it a second time; start another",
        "ExpertGroup: ranks_per_node must divide the group's 4 ranks, got 3",
        'ExpertGroup: order must be "rank" or "node", got \'size\'',
    ]
    for messages in ranks.run(refuses):
        for got, start in zip(messages, starts, strict=True):
            assert got.startswith(start)
