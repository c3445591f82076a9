"""FlopCounterMode over our operators, and over a training step against the arithmetic of its matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from deepseek_ext import DeepseekV3, ModelConfig, ops
from deepseek_ext.train.environment import model_size


def counted(action: Any) -> dict[str, int]:
    with FlopCounterMode(display=False) as counter:
        action()
    return {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}


def test_fp8_linear_forward_and_backward() -> None:
    x, w = torch.randn(2, 128, 192, requires_grad=True), torch.nn.Parameter(torch.randn(80, 192))
    product = 2 * 256 * 192 * 80
    assert counted(lambda: ops.fp8_linear(x, w).sum().backward()) == {
        "deepseek_ext.fp8_linear": product,
        "deepseek_ext.gemm": 2 * product,
    }
    w.grad = torch.zeros_like(w)
    with ops.accumulate_weight_gradients():
        found = counted(lambda: ops.fp8_linear(x, w).sum().backward())
    assert found["deepseek_ext.gemm_accumulate_"] == product


@pytest.mark.parametrize("accumulate", [False, True])
def test_experts_count_the_rows_that_they_have(accumulate: bool) -> None:
    """Two of the 40 choices are -1 and go to no expert; the padding of wgrad's operands is no work either."""
    tokens, hidden, width, experts = 20, 64, 32, 4
    x = torch.randn(tokens, hidden, requires_grad=True)
    gate_up = torch.nn.Parameter(torch.randn(experts, 2 * width, hidden))
    down = torch.nn.Parameter(torch.randn(experts, hidden, width))
    indices = torch.randint(experts, (tokens, 2), dtype=torch.int32)
    indices[3] = -1
    weights = torch.rand(tokens, 2)
    rows = 38

    def step() -> None:
        ops.moe_ffn(x, weights, indices, gate_up, down).sum().backward()

    product = 2 * rows * 3 * hidden * width
    if not accumulate:
        assert counted(step) == {
            "deepseek_ext.moe_ffn": product,
            "deepseek_ext.grouped_gemm": product,
            "deepseek_ext.grouped_gemm_wgrad": product,
        }
        return
    gate_up.grad, down.grad = torch.zeros_like(gate_up), torch.zeros_like(down)
    with ops.accumulate_weight_gradients():
        assert counted(step)["deepseek_ext.grouped_gemm_wgrad_accumulate_"] == product


def test_attention_counts_the_whole_matrix_as_torch_does() -> None:
    q, v = torch.randn(2, 3, 10, 24, requires_grad=True), torch.randn(2, 3, 10, 16)
    scores = 2 * 3 * 10 * 10
    assert counted(lambda: ops.causal_attention(q, q, v, 0.2)[0].sum().backward()) == {
        "deepseek_ext.causal_attention": 2 * scores * (24 + 16),
        "deepseek_ext.causal_attention_backward": 2 * scores * (3 * 24 + 2 * 16),
    }


def test_fake_tensors_have_the_flops_of_their_shapes() -> None:
    with FakeTensorMode():
        a, b = torch.empty(40, 256), torch.empty(4, 32, 256)
        codes, scales = ops.quantize_tiles(a)
        w_codes, w_scales = ops.quantize_blocks(b)
        offs = torch.empty(4, dtype=torch.int32)
        found = counted(lambda: ops.grouped_gemm(codes, scales, w_codes, w_scales, offs))
    assert found == {"deepseek_ext.grouped_gemm": 2 * 40 * 256 * 32}


@pytest.mark.parametrize("precision", ["fp8", "bf16"])
def test_a_training_step(precision: Any) -> None:
    """Six operations a weight and token, and two more for what backward projects up again.

    To `model_size` that adds the recomputation; it takes away what FlopCounterMode has no formula for
    (torch's grouped product), attention, of which it counts the masked scores too, and the rows that MTP
    modules lack at the end of a sequence. Rows are whole tiles: wgrad multiplies the padding too.
    """
    config = ModelConfig.preset("tiny")
    sequences, length = 128, 3
    tokens = torch.randint(config.vocab_size, (sequences, length + 1))
    model = DeepseekV3(config, precision=precision)
    found = counted(lambda: model.loss(tokens[:, :-1], tokens[:, 1:]).total.backward())
    total = sum(found.values())

    def weights(*parts: str) -> int:
        return sum(p.numel() for name, p in model.named_parameters() if all(part in name for part in parts))

    rows, mtp_rows, mtp = sequences * length, sequences * (length - 1), f"layers.{config.num_hidden_layers}."
    again = {part: weights("q_b_proj", part) + weights("kv_b_proj", part) for part in ("layers", mtp)}
    used = config.num_experts_per_tok / config.n_routed_experts
    experts = {part: weights(".experts.", part) * used for part in ("layers", mtp)}
    lacking = 6 * (weights("lm_head") + weights(mtp, "_proj") + weights(mtp, "gate.weight") + experts[mtp])

    size = model_size(model, config, length)
    heads = config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
    attention = (config.num_hidden_layers + 1) * heads * length / 2 * 2 * 3
    expected = rows * (size.flops_per_token - attention) - (rows - mtp_rows) * lacking
    expected += 2 * (rows * again["layers"] - (rows - mtp_rows) * again[mtp])
    total -= sum(count for op, count in found.items() if "causal_attention" in op)
    if precision == "bf16":
        total -= sum(count for op, count in found.items() if "grouped" in op)
        expected -= 6 * (rows * experts["layers"] - (rows - mtp_rows) * experts[mtp])
    assert total == expected
