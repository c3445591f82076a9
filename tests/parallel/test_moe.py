"""The routed experts over 1, 2 and 4 ranks: the same layer, the same model."""

from __future__ import annotations

import itertools

import pytest
import torch
from exchange_inputs import MODES, expert_group
from ranks import WORLD, Place, Ranks
from torch import Tensor, nn

from deepseek_ext import DeepseekV3, ModelConfig, ops, parallel
from deepseek_ext.parallel import ExpertGroup
from deepseek_ext.train.replay import first_not_finite

EXPERTS, TOP_K, HIDDEN, WIDTH, TOKENS = 8, 3, 264, 136, 60
CONFIG = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32,
    "num_hidden_layers": 2, "first_k_dense_replace": 1, "num_attention_heads": 2,
    "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2,
    "num_nextn_predict_layers": 1, "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip


def half_ulp(x: Tensor) -> Tensor:
    """Half the distance between BF16 numbers of x's size."""
    return torch.ldexp(torch.tensor(1.0), torch.frexp(x.float())[1] - 9)


def layer_agrees(place: Place) -> float:
    worst = 0.0
    for dtype, masked in itertools.product((torch.float32, torch.bfloat16), (False, True)):
        rng = torch.Generator().manual_seed(3)
        total = WORLD * TOKENS
        indices = torch.rand(total, EXPERTS, generator=rng).argsort(1)[:, :TOP_K].int()
        if masked:
            indices = indices.masked_fill(torch.rand(indices.shape, generator=rng) < 0.4, -1)
        x = torch.randn(total, HIDDEN, generator=rng).to(dtype)
        weights = torch.rand(total, TOP_K, generator=rng)
        gate_up = torch.randn(EXPERTS, 2 * WIDTH, HIDDEN, generator=rng) / 16
        down = torch.randn(EXPERTS, HIDDEN, WIDTH, generator=rng) / 11
        grad = torch.randn(total, HIDDEN, generator=rng).to(dtype)
        for size in (1, 2, WORLD):
            # The tokens of a group's ranks, and one process that has them all.
            first = place.rank // size * size
            mine = slice(place.rank * TOKENS, (place.rank + 1) * TOKENS)
            all_tokens = slice(first * TOKENS, (first + size) * TOKENS)
            held = slice((place.rank - first) * EXPERTS // size, (place.rank - first + 1) * EXPERTS // size)
            one = [t.clone().requires_grad_() for t in (x[all_tokens], weights[all_tokens], gate_up, down)]
            wanted = ops.moe_ffn(one[0], one[1], indices[all_tokens], one[2], one[3])
            wanted.backward(grad[all_tokens])
            own = [t.clone().requires_grad_() for t in (x[mine], weights[mine], gate_up[held], down[held])]
            routing = parallel.create_routing(indices[mine], EXPERTS, place.groups[size])
            got = ops.moe_ffn(own[0], own[1], indices[mine], own[2], own[3], exchange=routing)
            got.backward(grad[mine])
            place_of = slice((place.rank - first) * TOKENS, (place.rank - first + 1) * TOKENS)
            pairs = [(got, wanted[place_of]), (own[0].grad, one[0].grad[place_of])]
            for a, b in pairs:
                error = (a.float() - b.float()).abs()
                if size == 1:
                    assert not error.any()
                elif dtype == torch.float32:
                    assert float(error.max()) < 1e-6 * float(b.abs().max())
                    worst = max(worst, float(error.max() / b.abs().max()))
                else:  # each rank's part is rounded, then their sum, as here; parts are no larger than this
                    part = half_ulp(a.float().abs().max(1, keepdim=True).values)
                    assert bool((error <= (size + 2) * part).all())
            # Gate weights and experts see the same rows in the same order.
            assert torch.equal(own[1].grad, one[1].grad[place_of])
            assert torch.equal(own[2].grad, one[2].grad[held])
            assert torch.equal(own[3].grad, one[3].grad[held])
    return worst


def test_moe_ffn_over_ranks_is_that_of_one_process(ranks: Ranks) -> None:
    """In FP32 to 1e-6; in BF16 to half an ulp for each rank's part; all weight gradients bit for bit."""
    assert 0 < max(ranks.run(layer_agrees)) < 1e-6


def levels_agree(place: Place) -> None:
    rng = torch.Generator().manual_seed(place.rank)
    shared = torch.Generator().manual_seed(9)
    indices = torch.rand(TOKENS, EXPERTS, generator=rng).argsort(1)[:, :TOP_K].int()
    x = torch.randn(TOKENS, HIDDEN, generator=rng).bfloat16()
    weights, grad = torch.rand(TOKENS, TOP_K, generator=rng), torch.randn(TOKENS, HIDDEN, generator=rng)
    gate_up = torch.randn(EXPERTS, 2 * WIDTH, HIDDEN, generator=shared)[place.rank * 2 : place.rank * 2 + 2]
    down = torch.randn(EXPERTS, HIDDEN, WIDTH, generator=shared)[place.rank * 2 : place.rank * 2 + 2]
    results = {}
    for mode in MODES:
        own = [t.clone().requires_grad_() for t in (x, weights, gate_up, down)]
        routing = parallel.create_routing(indices, EXPERTS, expert_group(place, mode))
        y = ops.moe_ffn(own[0], own[1], indices, own[2], own[3], exchange=routing)
        y.backward(grad.bfloat16())
        results[mode] = [y.detach(), *(t.grad for t in own)]
    for got, wanted in zip(results["two-level"], results["node"], strict=True):
        assert torch.equal(got, wanted)
    for got, wanted in zip(results["two-level"][2:], results["flat"][2:], strict=True):
        assert torch.equal(got, wanted)  # gradients of weights do not depend on how partial sums are rounded


def test_two_levels_give_the_bits_of_the_flat_exchange(ranks: Ranks) -> None:
    """With order="node"; gradients of expert weights too, for which rows must come in the same order."""
    ranks.run(levels_agree)


def losses(model: DeepseekV3, tokens: Tensor, total: int) -> Tensor:
    loss = model.loss(tokens[:, :-1], tokens[:, 1:], num_targets=total, num_sequences=4).total
    loss.backward()
    return loss.detach()


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    """Of two lists of gradients, relative to the second."""
    apart = sum(float((x - y).square().sum()) for x, y in zip(a, b, strict=True))
    return float((apart / sum(float(y.square().sum()) for y in b)) ** 0.5)


def model_gradients(place: Place, precision: str, size: int) -> tuple[float, list[Tensor], list[Tensor]]:
    """How far the losses are apart, and the gradients of experts spread over `size` ranks and of one process
    that has all their tokens."""
    tokens = torch.randint(0, 96, (WORLD, 17), generator=torch.Generator().manual_seed(5))
    first = place.rank // size * size
    config = ModelConfig(**CONFIG)
    one, mine = (DeepseekV3(config, precision=precision, seed=1) for _ in range(2))
    group = ExpertGroup.flat(place.groups[size])
    parallel.shard_experts(mine, group)
    wanted = sum(losses(one, tokens[r : r + 1], 4 * 16) for r in range(first, first + size))
    got = losses(mine, tokens[place.rank : place.rank + 1], 4 * 16)
    torch.distributed.all_reduce(got, group=place.groups[size])
    share = EXPERTS // size
    gradients = []
    for (name, a), b in zip(mine.named_parameters(), one.named_parameters(), strict=True):
        assert name == b[0]
        grad, whole = a.grad, b[1].grad
        if ".experts." in name:
            whole = whole[group.rank * share : (group.rank + 1) * share]
        else:
            torch.distributed.all_reduce(grad, group=place.groups[size])
        assert grad.shape == whole.shape
        gradients.append((grad, whole))
    ours, theirs = zip(*gradients, strict=True)
    return float((got - wanted).abs() / wanted), list(ours), list(theirs)


def model_agrees(place: Place) -> None:
    for size in (2, WORLD):
        loss, ours, exact = model_gradients(place, "fp32", size)
        assert loss < 1e-6
        for got, wanted in zip(ours, exact, strict=True):
            assert float((got - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
        for precision in ("bf16", "fp8"):
            loss, ours, theirs = model_gradients(place, precision, size)
            # What the roundings of an exchange change is less than what the precision itself does.
            assert loss < 2e-3
            assert distance(ours, theirs) < distance(theirs, exact)


def test_model_with_sharded_experts(ranks: Ranks) -> None:
    """Loss and every gradient against one process with the tokens of all ranks."""
    ranks.run(model_agrees)


def hooks_see_experts(place: Place, precision: str) -> str:
    """What hooks are given of the layer's experts; and where a weight of rank 1's is found to be infinite."""
    model = DeepseekV3(ModelConfig(**CONFIG), precision=precision, seed=1)
    parallel.shard_experts(model, ExpertGroup.flat(place.groups[WORLD]))
    experts = model.model.layers[1].mlp.experts
    seen: list[tuple[Tensor, Tensor]] = []
    handle = experts.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    tokens = torch.randint(0, 96, (1, 17), generator=torch.Generator().manual_seed(place.rank))

    def step() -> Tensor:
        return losses(model, tokens, 16)

    step()
    ((given, out),) = seen
    assert given.shape == out.shape == (16, 64)
    assert bool(out.isfinite().all())
    handle.remove()
    if place.rank == 1:
        with torch.no_grad():
            experts.down.fill_(float("inf"))
        model.weights_changed()
    return first_not_finite(model, step)


@pytest.mark.parametrize("precision", ["fp32", "fp8"])
def test_hooks_see_the_experts(ranks: Ranks, precision: str) -> None:
    found = ranks.run(hooks_see_experts, precision)
    assert found[1] == "model.layers.1.mlp.experts (forward; its down is not finite)"
    # Others got its rows back, unless they sent it none.
    assert "model.layers.1.mlp.experts (forward)" in found
    assert all(where.startswith("model.layers.1.mlp.experts") for where in found)


def accumulates(place: Place) -> None:
    """Straight into .grad, with the bits that autograd would add up."""
    rng = torch.Generator().manual_seed(place.rank)
    group = ExpertGroup.flat(place.groups[WORLD])
    steps = [
        (torch.rand(TOKENS, EXPERTS, generator=rng).argsort(1)[:, :TOP_K].int(),
         torch.randn(TOKENS, HIDDEN, generator=rng), torch.rand(TOKENS, TOP_K, generator=rng))
        for _ in range(2)
    ]  # fmt: skip
    values = torch.randn(2, 2 * WIDTH, HIDDEN, generator=rng), torch.randn(2, HIDDEN, WIDTH, generator=rng)
    results = []
    for queue in (None, []):
        gate_up, down = (nn.Parameter(value.clone()) for value in values)
        for indices, x, weights in steps:
            with ops.accumulate_weight_gradients(queue):
                routing = parallel.create_routing(indices, EXPERTS, group)
                y = ops.moe_ffn(x, weights, indices, gate_up, down, exchange=routing)
            y.sum().backward()
            for product in queue or []:
                product()
            if queue:
                assert len(queue) == 2
                queue.clear()
        results.append((gate_up.grad, down.grad))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_weight_gradients_may_be_queued(ranks: Ranks) -> None:
    ranks.run(accumulates)
