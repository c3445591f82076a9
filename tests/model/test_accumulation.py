"""A model's weight gradients added straight to `.grad`: the same bits, in every precision, with less work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from operators_seen import CountOperators  # type: ignore[import-not-found]
from torch import Tensor

from deepseek_ext.model import DeepseekV3
from deepseek_ext.ops import accumulate_weight_gradients

Make = Callable[..., Any]
PRECISIONS = ["fp8", "bf16", "fp32"]


def step(model: DeepseekV3, tokens: Tensor, targets: Tensor, parts: int = 2) -> dict[str, Tensor | None]:
    """Gradients of a step in micro-batches."""
    model.zero_grad()
    for micro_tokens, micro_targets in zip(tokens.chunk(parts), targets.chunk(parts), strict=True):
        model.loss(
            micro_tokens, micro_targets, num_targets=targets.numel(), num_sequences=len(tokens)
        ).total.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_equal(got: dict[str, Tensor | None], wanted: dict[str, Tensor | None]) -> None:
    for name, grad in wanted.items():
        assert torch.equal(got[name], grad), name


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("changes", [{}, {"q_lora_rank": None, "n_shared_experts": 0}], ids=["", "other"])
def test_the_bits_of_returned_gradients(
    precision: str, changes: dict[str, Any], make_model: Make, make_batch: Make
) -> None:
    model, batch = make_model(precision, **changes), make_batch(4, 24)
    wanted = step(model, *batch)
    with accumulate_weight_gradients():
        got = step(model, *batch)
    assert_equal(got, wanted)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_only_the_first_micro_batch_makes_tensors(precision: str, make_model: Make, make_batch: Make) -> None:
    """From the second on no matrix below embedding and head comes back to autograd."""
    model, batch = make_model(precision), make_batch(4, 24)
    returned: Counter[str] = Counter()
    nodes = []  # which live as long as somebody holds them
    for name, parameter in model.named_parameters():
        nodes.append(torch.autograd.graph.get_gradient_edge(parameter).node)

        def count(grads: tuple[Tensor | None, ...], name: str = name) -> None:
            returned[name] += grads[0] is not None

        nodes[-1].register_prehook(count)
    with accumulate_weight_gradients():
        step(model, *batch)
    matrices = {name for name, p in model.named_parameters() if p.dim() > 1}
    assert {name for name in matrices if returned[name]} == {"model.embed_tokens.weight", "lm_head.weight"}
    assert all(returned[name] for name in dict(model.named_parameters()).keys() - matrices)


def test_the_gemm_adds(make_model: Make, make_batch: Make) -> None:
    model, batch = make_model("fp8"), make_batch(4, 24)
    with CountOperators() as seen, accumulate_weight_gradients():
        step(model, *batch)
    # 4 blocks with 5 Linears of attention; gate, up and down of the dense FFN and of three shared experts.
    assert seen.counts["gemm_accumulate_"] == 4 * 5 + 4 * 3
    assert seen.counts["grouped_gemm_wgrad"] == seen.counts["grouped_gemm_wgrad_accumulate_"] == 3 * 2


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_queue_for_every_micro_batch(precision: str, make_model: Make, make_batch: Make) -> None:
    """Run in order, after all backward passes: the bits of the usual order."""
    model, (tokens, targets) = make_model(precision), make_batch(4, 24)
    wanted = step(model, tokens, targets)
    model.zero_grad()
    queues: list[list[Callable[[], None]]] = []
    for part in zip(tokens.chunk(2), targets.chunk(2), strict=True):
        queues.append([])
        with accumulate_weight_gradients(queues[-1]):
            loss = model.loss(*part, num_targets=targets.numel(), num_sequences=4)
        loss.total.backward()
    assert model.model.layers[0].self_attn.o_proj.weight.grad is None
    for queue in queues:
        for product in queue:
            product()
    assert_equal({name: p.grad for name, p in model.named_parameters()}, wanted)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_frozen_layers(precision: str, make_model: Make, make_batch: Make) -> None:
    model, batch = make_model(precision), make_batch(4, 24)
    wanted = step(model, *batch)
    frozen = ("up_proj.weight", "kv_b_proj.weight", "experts.down", "gate.weight")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.endswith(frozen))
    with accumulate_weight_gradients():
        got = step(model, *batch)
    for name, grad in got.items():
        if name.endswith(frozen):
            assert grad is None, name
        else:
            assert torch.equal(grad, wanted[name]), name
