"""A layer's routed experts, forward and backward, against the BF16 layer that torch's grouped_mm makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek_ext import ops

EXPERTS, TOP_K = 32, 4
SHAPES = [(1024, 256, 128), (2048, 512, 256)]  # tokens, hidden, width of an expert


def composition(x: Tensor, weights: Tensor, indices: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Sort the tokens by expert, two grouped products with SwiGLU in between, and add the rows up."""
    flat = indices.flatten().long()
    order = flat.argsort(stable=True)
    offs = torch.bincount(flat, minlength=EXPERTS).cumsum(0).int()
    source = order // TOP_K
    gate, up = F.grouped_mm(x[source], gate_up.mT, offs=offs).chunk(2, dim=-1)
    hidden = F.silu(gate) * up * weights.flatten()[order, None].to(x.dtype)
    return torch.zeros_like(x).index_add(0, source, F.grouped_mm(hidden, down.mT, offs=offs))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_moe_ffn(shape: tuple[int, int, int], threads: int, versus: Callable[..., Any]) -> None:
    """Weight codes made once before, as a step of several micro-batches does; the rival's are BF16 copies."""
    tokens, hidden, width = shape
    choice = torch.rand(tokens, EXPERTS) * torch.linspace(0.5, 1, EXPERTS)
    indices = choice.argsort(1, descending=True)[:, :TOP_K].int()
    x, weights = torch.randn(tokens, hidden).bfloat16().requires_grad_(), torch.rand(tokens, TOP_K)
    gate_up = torch.randn(EXPERTS, 2 * width, hidden) * hidden**-0.5
    down = torch.randn(EXPERTS, hidden, width) * width**-0.5
    codes = ops.quantize_blocks(gate_up), ops.quantize_blocks(down)
    grad = torch.randn(tokens, hidden).bfloat16()

    def step(call: Callable[..., Tensor], dtype: torch.dtype, **options: Any) -> Callable[[], Any]:
        leaves = [x, *(t.detach().to(dtype).requires_grad_() for t in (gate_up, down))]
        return lambda: torch.autograd.grad(
            call(leaves[0], weights, indices, leaves[1], leaves[2], **options), leaves, grad
        )

    versus(
        step(ops.moe_ffn, torch.float32, codes=codes),
        {"grouped_mm bf16": step(composition, torch.bfloat16)},
        flops=3 * 2 * 3 * tokens * TOP_K * hidden * width,
    )
