"""Which operators one training step runs: in FP8 every Linear's three products are ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

Make = Callable[..., Any]
ATEN_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "matmul", "linear", "mv", "dot", "_grouped_mm", "einsum"}


class CountOperators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


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
    assert counts["_scaled_dot_product_flash_attention_for_cpu"] == 4
    assert counts["_scaled_dot_product_flash_attention_for_cpu_backward"] == 4


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


def test_weights_are_quantised_once_a_step(make_model: Make, make_batch: Make) -> None:
    model = make_model("fp8")
    batch = make_batch(2, 32)
    expected = LINEARS + 2 * MOE_LAYERS
    assert count(model, batch)["quantize_blocks"] == expected
    assert count(model, batch)["quantize_blocks"] == 0  # the second micro-batch, forward and backward
    model.weights_changed()
    assert count(model, batch)["quantize_blocks"] == expected


def test_weights_are_cast_once_a_step(make_model: Make, make_batch: Make) -> None:
    model = make_model("bf16")
    batch = make_batch(2, 32)
    first, second = count(model, batch)["_to_copy"], count(model, batch)["_to_copy"]
    # A copy of each Linear's weight, where gate and up are two, of both expert tensors, eh_proj and the head.
    assert first - second == LINEARS + 4 + 2 * MOE_LAYERS + 2
