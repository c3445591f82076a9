"""Every public operator inside torch.compile(fullgraph=True), forward and backward: eager's bits, one graph.

One function a family calls all its operators. The number of rows is marked dynamic, so a graph that fixes it
is an error, and a second number of rows must find the graph made for the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from deepseek_ext import ops

EXPERTS, TOP_K = 4, 2
ROUTING = {"top_k": TOP_K, "n_groups": 2, "topk_groups": 1, "routed_scaling_factor": 2.5}


class Arguments(NamedTuple):
    """What a family's function is called with; results are compared, and arguments it may write."""

    tensors: list[Tensor]
    leaves: tuple[int, ...] = ()
    """Which of them want a gradient."""
    rows: tuple[int, ...] = (0,)
    """Which of them have the dynamic number of rows as their first dimension."""


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape).to(dtype)


def ends(rows: int) -> Tensor:
    """Uneven experts, the last row unused."""
    return torch.tensor([rows // 3, rows // 3, rows // 2, rows - 1], dtype=torch.int32)


def quantize(x: Tensor, w: Tensor) -> list[Tensor]:
    codes, scales = ops.quantize_tiles(x)
    blocks, block_scales = ops.quantize_blocks(w, power_of_2=True)
    packed, packed_scales = ops.quantize_e5m6(x)
    return [
        codes, scales, blocks, block_scales, packed, packed_scales,
        *ops.quantize_tiles_transposed(x),
        *ops.quantize_tiles_both(x),
        *ops.transpose_blocks(blocks, block_scales),
        *ops.retile(codes, scales),
        *ops.retile_e5m6(packed, packed_scales, x.shape[1]),
        ops.dequantize_tiles(codes, scales),
        ops.dequantize_blocks(blocks, block_scales, torch.bfloat16),
        ops.dequantize_e5m6(packed, packed_scales, x.shape[1]),
    ]  # fmt: skip


def gemm(x: Tensor, w: Tensor, out: Tensor, grown: Tensor, offs: Tensor) -> list[Tensor]:
    tiles, w0 = ops.quantize_tiles(x), ops.quantize_blocks(w)
    plain = ops.gemm(*tiles, w0[0][1], w0[1][1], out_dtype=torch.float32)
    ops.gemm_accumulate_(out, *tiles, w0[0][1], w0[1][1])
    grouped = ops.grouped_gemm(*tiles, *w0, offs)
    a, b = ops.quantize_tiles_transposed(grouped, offs), ops.retile(*tiles, offs)
    ops.grouped_gemm_wgrad_accumulate_(grown, *a, *b, offs)
    return [plain, grouped, ops.grouped_gemm_wgrad(*a, *b, offs)]


def swiglu(gate_up: Tensor, weights: Tensor) -> list[Tensor]:
    y = ops.swiglu(gate_up, weights)
    gate_up, weights = gate_up.detach(), weights.detach()
    codes, scales, *cache = ops.swiglu_quantize(gate_up, weights, cache=True)
    gradients = ops.swiglu_gradient(y.detach(), gate_up, weights)
    backward = ops.swiglu_backward(y.detach(), *cache, weights)
    return [y, codes, scales, *cache, *(t for t in (*gradients, *backward) if t is not None)]


def routing(logits: Tensor, bias: Tensor) -> list[Tensor]:
    weights, indices, load = ops.route(logits, bias.detach().clone(), **ROUTING)
    ops.update_router_bias_(bias, load, 0.1)
    return [weights, indices, load, ops.sequence_balance_loss(logits, indices, num_sequences=1, alpha=0.5)]


def permute(x: Tensor, weights: Tensor, indices: Tensor) -> list[Tensor]:
    order = ops.expert_order(indices, EXPERTS)
    rows = ops.gather_rows(x, order.rows, TOP_K)
    tiles = ops.gather_tiles(*ops.quantize_tiles(x.detach()), order.rows, TOP_K)
    return [*order, rows, *tiles, ops.combine_rows(rows, order.slots, weights, x)]


def attention(q: Tensor, k: Tensor, v: Tensor, starts: Tensor) -> list[Tensor]:
    out, logsumexp = ops.causal_attention(q, k, v, 0.2, starts)
    operands = (x.detach() for x in (out, q, k, v, out))
    return [out, logsumexp, *ops.causal_attention_backward(*operands, logsumexp, 0.2, starts)]


def norm(x: Tensor, weight: Tensor) -> list[Tensor]:
    out, rstd = ops.rms_norm(x, weight, 1e-6)
    x, weight = x.detach(), weight.detach()
    again = ops.rms_norm_again(x, weight, rstd)
    return [out, rstd, again, *ops.rms_norm_backward(again, x, weight, rstd)]


def rope(q: Tensor, kv: Tensor, k_rope: Tensor, rotation: Tensor) -> list[Tensor]:
    k = ops.rope_heads_(q, kv, k_rope, rotation, 2)
    grad_q = k.clone()
    v = kv.unflatten(-1, (2, -1)).transpose(1, 2)[..., 16:]
    return [k, grad_q, *ops.rope_heads_backward_(grad_q, k, v, rotation)]


def cross_entropy(logits: Tensor, targets: Tensor) -> list[Tensor]:
    return list(ops.cross_entropy_(logits, targets))


def optimizer(p: Tensor, grad: Tensor, m: Tensor, v: Tensor) -> list[Tensor]:
    settings = {"lr": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "step": 3}
    ops.adamw_step_(
        [p, p.new_ones(5)], [grad, p.new_ones(5)], [m, m.new_ones(5)], [v, v.new_ones(5)], **settings
    )
    return [p * 2]


def fp8_linear(x: Tensor, weight: Tensor) -> list[Tensor]:
    codes = ops.quantize_blocks(weight.detach())
    return [ops.fp8_linear(x, weight), ops.fp8_linear(x, weight, codes=codes, power_of_2=True)]


def moe_ffn(x: Tensor, weights: Tensor, indices: Tensor, gate_up: Tensor, down: Tensor) -> list[Tensor]:
    return [ops.moe_ffn(x, weights, indices, gate_up, down)]


def choices(rows: int) -> Tensor:
    return torch.rand(rows, EXPERTS).argsort(1)[:, :TOP_K].int()


FP32 = torch.float32
FAMILIES: dict[Callable[..., list[Tensor]], Callable[[int], Arguments]] = {
    quantize: lambda m: Arguments([random(m, 200), random(136, 200)]),
    gemm: lambda m: Arguments(
        [random(m, 200), random(EXPERTS, 136, 200), random(m, 136, dtype=FP32),
         random(EXPERTS, 136, 200, dtype=FP32), ends(m)], rows=(0, 2)
    ),
    swiglu: lambda m: Arguments([random(m, 272), torch.rand(m)], leaves=(0, 1), rows=(0, 1)),
    routing: lambda m: Arguments([random(m, EXPERTS, dtype=FP32), torch.zeros(EXPERTS)], leaves=(0,)),
    permute: lambda m: Arguments(
        [random(m, 200), torch.rand(m, TOP_K), choices(m)], leaves=(0, 1), rows=(0, 1, 2)
    ),
    attention: lambda m: Arguments(
        [random(m, 2, 9, 24), random(m, 2, 9, 24), random(m, 2, 9, 16),
         torch.zeros(m, 9, dtype=torch.int32)], leaves=(0, 1, 2), rows=(0, 1, 2, 3)
    ),
    norm: lambda m: Arguments([random(m, 200), random(200, dtype=FP32)], leaves=(0, 1)),
    rope: lambda m: Arguments(
        [random(m, 9, 48), random(m, 9, 64), random(m, 9, 8),
         torch.polar(torch.ones(9, 4), random(9, 4, dtype=FP32))], rows=(0, 1, 2)
    ),
    cross_entropy: lambda m: Arguments([random(m, 200), torch.randint(200, (m,))], rows=(0, 1)),
    optimizer: lambda m: Arguments(
        [random(m, 8, dtype=FP32), random(m, 8, dtype=FP32), random(m, 8), random(m, 8).abs()],
        rows=(0, 1, 2, 3),
    ),
    fp8_linear: lambda m: Arguments([random(m, 200), random(136, 200, dtype=FP32)], leaves=(0, 1)),
    moe_ffn: lambda m: Arguments(
        [random(m, 200), torch.rand(m, TOP_K), choices(m), random(EXPERTS, 272, 200, dtype=FP32),
         random(EXPERTS, 200, 136, dtype=FP32)], leaves=(0, 1, 3, 4), rows=(0, 1, 2)
    ),
}  # fmt: skip


def run(function: Callable[..., list[Tensor]], arguments: Arguments, *, dynamic: bool) -> list[Tensor]:
    """Results, arguments as they are afterwards, and gradients."""
    tensors = [t.clone() for t in arguments.tensors]
    for i in arguments.leaves:
        tensors[i].requires_grad_()
    if dynamic:
        for i in arguments.rows:
            torch._dynamo.mark_dynamic(tensors[i], 0)
    results = function(*tensors)
    gradients: tuple[Tensor, ...] = ()
    if arguments.leaves:
        outs = [y for y in results if y.requires_grad]
        torch.manual_seed(1)
        gradients = torch.autograd.grad(
            outs, [tensors[i] for i in arguments.leaves], [torch.randn_like(y) for y in outs]
        )
    return [t.detach() for t in (*results, *tensors, *gradients)]


def same_bits(ours: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(ours) == len(wanted)
    for i, (a, b) in enumerate(zip(ours, wanted, strict=True)):
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride()), i
        assert torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)), i


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_family_in_one_graph(family: Callable[..., list[Tensor]]) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(family, fullgraph=True, backend="aot_eager")
    for rows in (150, 270):  # two and three tiles of 128
        arguments = FAMILIES[family](rows)
        same_bits(run(compiled, arguments, dynamic=True), run(family, arguments, dynamic=False))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_the_functions_above_call_every_public_operator() -> None:
    called: set[str] = set()

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Record():
        for family, arguments in FAMILIES.items():
            family(*arguments(40).tensors)
    operators = {name for name in ops.__all__ if hasattr(torch.ops.deepseek_ext, name)}
    assert operators - called == {"cpu_capability"}


@pytest.mark.slow
def test_a_layer_through_inductor() -> None:
    """A router and its experts by the default compiler. It fuses torch's own operators and may round them
    otherwise: those here are exact, a product by two and a sum.

    Its cache on disk is left out: it tells graphs apart by their operators' names, and would answer with the
    backward that an operator had when it was compiled last.
    """

    def layer(x: Tensor, logits: Tensor, bias: Tensor, gate_up: Tensor, down: Tensor) -> list[Tensor]:
        weights, indices, load = ops.route(logits * 2, bias, **ROUTING)
        return [x + ops.moe_ffn(x, weights, indices, gate_up, down), load]

    arguments = Arguments(
        [random(150, 200, dtype=FP32), random(150, EXPERTS, dtype=FP32), torch.zeros(EXPERTS),
         random(EXPERTS, 272, 200, dtype=FP32), random(EXPERTS, 200, 136, dtype=FP32)], leaves=(0, 1, 3, 4)
    )  # fmt: skip
    torch._dynamo.reset()
    with torch.compiler.config.patch(force_disable_caches=True):
        compiled = run(torch.compile(layer, fullgraph=True), arguments, dynamic=False)
    same_bits(compiled, run(layer, arguments, dynamic=False))
