"""Which operators one training step runs: in FP8 every Linear's three products are ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from operators_seen import CountOperators  # type: ignore[import-not-found]

from deepseek_ext.model import DeepseekV3
from deepseek_ext.train import build_optimizer

Make = Callable[..., Any]
ATEN_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "matmul", "linear", "mv", "dot", "_grouped_mm", "einsum"}


def count(model: Any, batch: Any) -> Counter[str]:
    with CountOperators() as seen:
        model.loss(*batch).total.backward()
    return seen.counts


# The tiny model with one MTP module: 4 blocks of attention, of which 1 has a dense FFN and 3 have experts.
# Attention has q_a, q_b, kv_a, kv_b and o; a dense FFN and a shared expert have gate with up, and down.
LINEARS = 4 * 5 + 4 * 2
MOE_LAYERS = 3
# fprop, dgrad and wgrad of each Linear. Backward projects q_b and kv_b up again, and multiplies the gradients
# of gate and of up each into its own weight's.
PRODUCTS = 3 * LINEARS + 4 * 2 + 4


def test_every_linear_of_an_fp8_step_is_ours(make_model: Make, make_batch: Make) -> None:
    counts = count(make_model("fp8"), make_batch(2, 32))
    assert counts["gemm"] == PRODUCTS
    assert counts["moe_ffn"] == MOE_LAYERS  # and inside it two products
    assert counts["grouped_gemm"] == 2 * MOE_LAYERS
    assert counts["grouped_gemm_wgrad"] == 2 * MOE_LAYERS
    # What stays in high precision: 3 products each for 3 routers, eh_proj, and the head of main model and
    # MTP.
    left = {name: n for name, n in counts.items() if name in ATEN_PRODUCTS}
    assert left == {"mm": 3 * (MOE_LAYERS + 1 + 2)}
    assert counts["causal_attention"] == 4
    assert counts["causal_attention_backward"] == 4


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_experts_run_grouped_in_high_precision(precision: str, make_model: Make, make_batch: Make) -> None:
    counts = count(make_model(precision), make_batch(2, 32))
    assert counts["_grouped_mm"] == 3 * 2 * MOE_LAYERS
    assert counts["mm"] == PRODUCTS + 3 * (MOE_LAYERS + 1 + 2)
    assert not {"gemm", "moe_ffn", "grouped_gemm", "quantize_blocks"} & counts.keys()


@pytest.mark.parametrize("precision", ["fp8", "bf16", "fp32"])
def test_a_step_reads_nothing_back_to_the_host(precision: str, make_model: Make, make_batch: Make) -> None:
    counts = count(make_model(precision), make_batch(2, 32))
    assert not {"_local_scalar_dense", "nonzero", "item", "equal"} & counts.keys()


@pytest.mark.parametrize("precision", ["fp8", "bf16", "fp32"])
def test_routes_are_saved_and_never_found_again(precision: str, make_model: Make, make_batch: Make) -> None:
    model = make_model(precision)
    counts = count(model, make_batch(2, 32))
    assert counts["route"] == MOE_LAYERS
    assert counts["expert_order"] == (0 if precision == "fp8" else MOE_LAYERS)  # else inside moe_ffn
    assert model.router_load().sum(1).tolist() == [2 * 32 * 2, 2 * 32 * 2, 2 * 31 * 2]


def test_weights_are_quantised_once_a_step(make_model: Make, make_batch: Make) -> None:
    """However many micro-batches there are, forward and backward; and again once weights were written."""
    model = make_model("fp8")
    other = make_model("fp8", std=0.06)
    batch = make_batch(2, 32)
    every = LINEARS + 2 * MOE_LAYERS

    def quantised() -> int:
        return count(model, batch)["quantize_blocks"]

    assert [quantised() for _ in range(3)] == [every, 0, 0]
    model.weights_changed()
    assert [quantised() for _ in range(2)] == [every, 0]
    model.load_state_dict(other.state_dict())
    assert [quantised() for _ in range(2)] == [every, 0]
    with torch.no_grad():
        assert count_forward(model, batch) == 0  # an evaluation in between

    # An optimizer that knows nothing of codes.
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    assert [quantised() for _ in range(2)] == [every, 0]
    # Ours, whose step also says so by itself.
    build_optimizer(model, lr=1e-3).step()
    assert [quantised() for _ in range(2)] == [every, 0]
    # One layer alone.
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.mul_(2)
    assert [quantised() for _ in range(2)] == [1, 0]


def count_forward(model: Any, batch: Any) -> int:
    with CountOperators() as seen:
        model.loss(*batch)
    return seen.counts["quantize_blocks"]


def test_a_layer_of_another_precision_runs_in_it(make_model: Make, make_batch: Make) -> None:
    """Down to one projection: its products are torch's, and attention's output is kept as it is."""
    batch = make_batch(2, 32)
    config = make_model().config
    patterns = {"model.layers.1.mlp.*": "bf16", "model.layers.2.self_attn.o_proj": "bf16"}
    model = DeepseekV3(config, precision="fp8", precision_overrides=patterns, seed=3)
    counts = count(model, batch)
    # Layer 1 has experts, and a shared one with gate with up, and down; each of these two has three products,
    # of which gate's and up's weight gradients are apart. The gates stay in FP32.
    assert counts["moe_ffn"] == MOE_LAYERS - 1
    assert counts["gemm"] == PRODUCTS - 7 - 3
    assert counts["mm"] == 3 * (MOE_LAYERS + 1 + 2) + 7 + 3
    assert counts["quantize_e5m6"] == counts["retile_e5m6"] == counts["dequantize_e5m6"] == 3
    model.loss(*batch).total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_weights_are_cast_once_a_step(make_model: Make, make_batch: Make) -> None:
    model = make_model("bf16")
    batch = make_batch(2, 32)
    first, second = count(model, batch)["_to_copy"], count(model, batch)["_to_copy"]
    # A copy of each Linear's weight, where gate and up are two, of both expert tensors, eh_proj and the head.
    assert first - second == LINEARS + 4 + 2 * MOE_LAYERS + 2
