"""What backward computes again is what forward had, bit for bit; what is kept in FP8 enters as said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek_ext import ops
from deepseek_ext.config import ModelConfig
from deepseek_ext.nn.attention import Attention
from deepseek_ext.nn.context import Context
from deepseek_ext.nn.moe import SwiGLU
from deepseek_ext.nn.norm import RMSNorm
from deepseek_ext.nn.recompute import as_it_is
from deepseek_ext.nn.rope import rotate, rotations

Make = Callable[..., Any]
B, T, H = 2, 70, 160
CONFIG = {
    "hidden_size": H,
    "num_attention_heads": 3,
    "q_lora_rank": 96,
    "kv_lora_rank": 72,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
}
YARN = {
    "type": "yarn",
    "factor": 4,
    "original_max_position_embeddings": 64,
    "mscale": 2.0,
    "mscale_all_dim": 1.0,
}


def filled(module: nn.Module, rng: torch.Generator) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.1, generator=rng)
    return module


def gradients(module: nn.Module) -> dict[str, Tensor]:
    taken = {name: parameter.grad for name, parameter in module.named_parameters()}
    module.zero_grad()
    return taken


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_norm_again(dtype: torch.dtype, rng: torch.Generator) -> None:
    norm = filled(RMSNorm(H, 1e-6), rng)
    whole = torch.randn(B, T, H + 32, generator=rng).to(dtype)
    for x in (whole[..., :H], whole[..., :H].contiguous()):
        value, kept, again = norm.recomputed(x)
        assert torch.equal(again(*kept), value)
        assert kept[0].data_ptr() == x.data_ptr()


def linear(layer: Any, x: Tensor) -> Tensor:
    """One Linear by operators and functions that have their own autograd."""
    if layer.precision == "fp8":
        return ops.fp8_linear(x, layer.weight)
    dtype = torch.bfloat16 if layer.precision == "bf16" else torch.float32
    return F.linear(x, layer.weight.to(dtype))


def heads(attention: Attention, x: Tensor, rotation: Tensor) -> list[Tensor]:
    """q, k and v [B, N, T, width] of attention, with ordinary autograd."""
    c, a = attention.config, attention
    q = (
        linear(a.q_proj, x)
        if c.q_lora_rank is None
        else linear(a.q_b_proj, a.q_a_layernorm(linear(a.q_a_proj, x)))
    )
    q_nope, q_rope = q.unflatten(-1, (c.num_attention_heads, -1)).split(
        [c.qk_nope_head_dim, c.qk_rope_head_dim], -1
    )
    latent, k_rope = linear(a.kv_a_proj_with_mqa, x).split([c.kv_lora_rank, c.qk_rope_head_dim], -1)
    kv = linear(a.kv_b_proj, a.kv_a_layernorm(latent)).unflatten(-1, (c.num_attention_heads, -1))
    k_nope, v = kv.split([c.qk_nope_head_dim, c.v_head_dim], -1)
    k_rope = rotate(k_rope, rotation).unsqueeze(2).expand(-1, -1, c.num_attention_heads, -1)
    q, k = torch.cat([q_nope, rotate(q_rope, rotation)], -1), torch.cat([k_nope, k_rope], -1)
    return [t.transpose(1, 2) for t in (q, k, v)]


@pytest.mark.parametrize("precision", ["fp8", "bf16", "fp32"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"q_lora_rank": None}, {"v_head_dim": 56}, {"rope_scaling": YARN}],
    ids=["", "direct", "wide v", "yarn"],
)
def test_attention_is_the_composition(precision: str, changes: dict[str, Any], rng: torch.Generator) -> None:
    """Bit for bit, forward and backward; in FP8 with the output that its E5M6 codes say."""
    config = ModelConfig.preset("tiny", **{**CONFIG, **changes})
    attention = filled(Attention(config, 0, precision), rng)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    x = torch.randn(B, T, H, generator=rng).to(dtype).requires_grad_()
    grad = torch.randn(B, T, H, generator=rng).to(dtype)
    rotation = rotations(config, 0, T, x.device)
    y = attention(as_it_is(x), Context(rotation))
    y.backward(grad)
    got = {**gradients(attention), "x": x.grad}
    x.grad = None

    q, k, v = heads(attention, x, rotation)
    out, logsumexp = ops.causal_attention(*(t.detach() for t in (q, k, v)), attention.scale)
    rows = out.transpose(1, 2).flatten(2).requires_grad_()
    wanted_y = linear(attention.o_proj, rows)
    assert torch.equal(y, wanted_y)
    wanted_y.backward(grad)
    kept = rows.detach()
    if precision == "fp8":
        packed, scales = ops.quantize_e5m6(kept)
        kept = ops.dequantize_e5m6(packed, scales, kept.shape[-1], dtype)
        assert (kept - rows).abs().max() <= 2.0**-7 * rows.abs().max()
        flat = [t.flatten(0, 1) for t in (packed, scales, grad)]
        grad_t = ops.quantize_tiles_transposed(flat[2])
        x_t = ops.retile_e5m6(flat[0], flat[1], kept.shape[-1])
        attention.o_proj.weight.grad = ops.gemm(*grad_t, *x_t, out_dtype=torch.float32)
    by_head = [t.unflatten(-1, (config.num_attention_heads, -1)).transpose(1, 2) for t in (rows.grad, kept)]
    grads = ops.causal_attention_backward(
        by_head[0], *(t.detach() for t in (q, k, v)), by_head[1], logsumexp, attention.scale
    )
    torch.autograd.backward([q, k, v], list(grads))
    for name, wanted in {**gradients(attention), "x": x.grad}.items():
        assert torch.equal(got[name], wanted), name


@pytest.mark.parametrize("precision", ["fp8", "bf16", "fp32"])
def test_the_ffn_is_the_composition(precision: str, rng: torch.Generator) -> None:
    """Bit for bit; in FP8 with the gradient of the activation where the tiles of gate_up say it was."""
    ffn = filled(SwiGLU(H, 200, precision), rng)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    x = torch.randn(B * T, H, generator=rng).to(dtype).requires_grad_()
    grad = torch.randn(B * T, H, generator=rng).to(dtype)
    y = ffn(as_it_is(x))
    y.backward(grad)
    got = {**gradients(ffn), "x": x.grad}
    x.grad = None

    stacked = torch.cat([ffn.gate_proj.weight, ffn.up_proj.weight])
    if precision == "fp8":
        gate_up = ops.fp8_linear(x, stacked)
        codes, scales, *kept = ops.swiglu_quantize(gate_up.detach(), cache=True)
        down = ops.quantize_blocks(ffn.down_proj.weight.detach())
        wanted_y = ops.gemm(codes, scales, *down)
        g, g_scales, g_t, g_scales_t = ops.quantize_tiles_both(grad)
        grad_hidden = ops.gemm(g, g_scales, down[0].t(), down[1].t())
        grad_gate_up, _, hidden = ops.swiglu_backward(grad_hidden, *kept)
        hidden_t = ops.quantize_tiles_transposed(hidden)
        ffn.down_proj.weight.grad = ops.gemm(g_t, g_scales_t, *hidden_t, out_dtype=torch.float32)
        gate_up.backward(grad_gate_up)
    else:
        hidden = ops.swiglu(F.linear(x, stacked.to(dtype)))
        wanted_y = linear(ffn.down_proj, hidden)
        wanted_y.backward(grad)
    assert torch.equal(y, wanted_y)
    for name, wanted in {**gradients(ffn), "x": x.grad}.items():
        assert torch.equal(got[name], wanted), name


def test_what_e5m6_of_the_output_does_to_queries_and_keys(rng: torch.Generator) -> None:
    """Element by element, in FP32, from the rounding of an output to 6 bits.

    Backward reads the output O only in d_i = sum_v dO_iv O_iv, and dS_ij = P_ij (dP_ij - d_i). E5M6 moves O
    by 2^-7 of itself at most, or by half of a tile's smallest step, 2^-21 of its scale; so d_i moves by at
    most e_i = sum_v |dO_iv| times that, dQ_i by scale * sum_j P_ij e_i |k_j|, dK_j by
    scale * sum_i P_ij e_i |q_i|, and dV not at all.
    """
    n, width, scale = 64, 32, 0.2
    q, k, v, grad = (torch.randn(1, 3, n, width, generator=rng) for _ in range(4))
    out, logsumexp = ops.causal_attention(q, k, v, scale)
    rows = out.transpose(1, 2).reshape(n, -1)
    packed, scales = ops.quantize_e5m6(rows)
    kept = ops.dequantize_e5m6(packed, scales, rows.shape[1])
    kept = kept.view(1, n, 3, width).transpose(1, 2)
    exact = ops.causal_attention_backward(grad, q, k, v, out, logsumexp, scale)
    got = ops.causal_attention_backward(grad, q, k, v, kept, logsumexp, scale)

    p = (scale * (q @ k.mT) - logsumexp[..., None]).exp().tril()
    moved = 2.0**-7 * out.abs() + 2.0**-21 * scales.max()
    e = (grad.abs() * moved).sum(-1, keepdim=True)
    bounds = scale * (p @ k.abs()) * e, scale * (p * e).mT @ q.abs()
    for a, b, bound in zip(got[:2], exact[:2], bounds, strict=True):
        slack = 1e-5 * b.abs().max()  # of FP32 sums
        assert ((a - b).abs() <= bound + slack).all()
        assert (a - b).abs().max() > 0.01 * bound.max(), "the bound has something to say"
    assert torch.equal(got[2], exact[2])
