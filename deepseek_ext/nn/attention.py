"""Multi-head latent attention (paper, section 2.1.1).

Keys and values are projected up from one latent vector a token, and positions enter through a small key that
all heads share. Training attends over full keys and values, and keeps only what they are projected up from;
decoding works on the cached latents alone, with the up-projections absorbed into query and output.

Shapes: B sequences, T tokens, S cached tokens, N heads, R = kv_lora_rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..config import ModelConfig
from ..ops.derivatives import first_order_only
from ..ops.wgrad import accumulation
from .context import Context, LatentCache
from .derived import Derived
from .linear import Linear, Precision, project
from .norm import RMSNorm
from .product import Fp8Product, Operand, Product, product_backward
from .recompute import Recomputed, save_groups, saved_groups
from .rope import rotate, softmax_scale

LATENT_NORM_EPS = 1e-6
"""Of the norms of the latents: a constant in DeepSeek's released code too, whatever rms_norm_eps is."""


class Attention(Derived):
    """Causal MLA: x [B, T, hidden] to [B, T, hidden] in x's dtype."""

    def __init__(self, config: ModelConfig, layer: int, precision: Precision) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        self.scale = softmax_scale(config)
        c, hidden, heads = config, config.hidden_size, config.num_attention_heads
        if c.q_lora_rank is None:
            self.q_proj = Linear(hidden, heads * c.qk_head_dim, precision)
        else:
            self.q_a_proj = Linear(hidden, c.q_lora_rank, precision)
            self.q_a_layernorm = RMSNorm(c.q_lora_rank, LATENT_NORM_EPS)
            self.q_b_proj = Linear(c.q_lora_rank, heads * c.qk_head_dim, precision)
        self.kv_a_proj_with_mqa = Linear(hidden, c.kv_lora_rank + c.qk_rope_head_dim, precision)
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank, LATENT_NORM_EPS)
        self.kv_b_proj = Linear(c.kv_lora_rank, heads * (c.qk_nope_head_dim + c.v_head_dim), precision)
        self.o_proj = Linear(heads * c.v_head_dim, hidden, precision)

    def forward(self, x: Recomputed, context: Context) -> Tensor:
        """Down to the latents (eq. 1, 3 and 6), then `_LatentAttention`, or attention over cached latents."""
        if self.config.q_lora_rank is None:
            (compressed,) = project(x, self.kv_a_proj_with_mqa)
            q, q_up = x, self.q_proj
        else:
            q_latent, compressed = project(x, self.q_a_proj, self.kv_a_proj_with_mqa)
            q, q_up = self.q_a_layernorm.recomputed(q_latent), self.q_b_proj
        latent, k_rope = compressed.split([self.config.kv_lora_rank, self.config.qk_rope_head_dim], -1)
        kv = self.kv_a_layernorm.recomputed(latent)

        cache = context.cache
        if cache is not None:
            cache.append(self.layer, kv.value, rotate(k_rope, context.rotation))
            if cache.length > 0:
                return self.o_proj(self._attend_absorbed(q_up(q), cache, context.rotation))
        core = _Core(
            heads=_Heads(self.config, context.rotation),
            scale=self.scale,
            q_up=q_up.product(),
            kv_up=self.kv_b_proj.product(),
            o=self.o_proj.product(),
            starts=context.document_starts,
            keep=torch.is_grad_enabled(),
        )
        weights = q_up.weight, self.kv_b_proj.weight, self.o_proj.weight
        return _LatentAttention.apply(q.value, kv.value, k_rope, *weights, q, kv, core)

    def _attend_absorbed(self, q: Tensor, cache: LatentCache, rotation: Tensor) -> Tensor:
        """Attention of T new tokens over S cached latents, the new ones included: [B, T, N * v_head_dim].

        (q W_k) . latent = q . (W_k latent), so no cached token is ever projected up.
        """
        c = self.config
        q = q.unflatten(-1, (c.num_attention_heads, c.qk_head_dim))
        q_nope, q_rope = q.split([c.qk_nope_head_dim, c.qk_rope_head_dim], -1)
        q_rope = rotate(q_rope, rotation)
        tokens = q.shape[1]
        latent, k_rope = cache.read(self.layer, tokens)
        w_k, w_v = self._absorbed_weights(q_nope.dtype)
        q_latent = torch.einsum("btnd,ndr->bntr", q_nope, w_k)
        scores = q_latent @ latent.unsqueeze(1).mT + q_rope.transpose(1, 2) @ k_rope.unsqueeze(1).mT
        seen = torch.ones(tokens, latent.shape[1], dtype=torch.bool, device=latent.device).tril(cache.length)
        scores = (scores.float() * self.scale).masked_fill(~seen, float("-inf"))
        mixed = scores.softmax(-1).to(latent.dtype) @ latent.unsqueeze(1)  # [B, N, T, R]
        return torch.einsum("bntr,nvr->btnv", mixed, w_v).flatten(-2)

    def _absorbed_weights(self, dtype: torch.dtype) -> list[Tensor]:
        """kv_b_proj's weight as the forward multiplies by it, per head: [N, nope, R] for keys, [N, v, R]."""
        c = self.config

        def values(weight: Tensor) -> list[Tensor]:
            by = self.kv_b_proj.product()
            if isinstance(by, Fp8Product):
                weight = ops.dequantize_blocks(by.codes, by.scales)
            per_head = weight.to(dtype).unflatten(0, (c.num_attention_heads, -1))
            return [part.contiguous() for part in per_head.split([c.qk_nope_head_dim, c.v_head_dim], 1)]

        return self.derive(values, self.kv_b_proj.weight)


@dataclass(frozen=True, slots=True)
class _Heads:
    """Queries, keys and values of all heads as attention reads them, from the up-projections' outputs."""

    config: ModelConfig
    rotation: Tensor

    def forward(self, q: Tensor, kv: Tensor, k_rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, T, N * (nope + rope)], kv [B, T, N * (nope + v)] and the shared k_rope [B, T, rope] to
        q, k [B, N, T, nope + rope] and v [B, N, T, v]; q and v are the arguments' own memory."""
        c, heads = self.config, self.config.num_attention_heads
        k = ops.rope_heads_(q, kv, k_rope, self.rotation, heads)
        q_heads = q.unflatten(-1, (heads, -1))
        v = kv.unflatten(-1, (heads, -1))[..., c.qk_nope_head_dim :]
        return q_heads.transpose(1, 2), k, v.transpose(1, 2)

    def backward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of forward's arguments from those of its results, of which q's is written."""
        grad_kv, grad_k_rope = ops.rope_heads_backward_(q, k, v, self.rotation)
        return q.transpose(1, 2).flatten(-2), grad_kv, grad_k_rope


class _Core(NamedTuple):
    """What attention computes with, beside its inputs."""

    heads: _Heads
    scale: float
    q_up: Product
    kv_up: Product
    o: Product
    starts: Tensor | None
    """`Context.document_starts`."""
    keep: bool
    """Whether a backward may follow."""

    def project_up(self, q_x: Operand, kv_x: Operand, k_rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all heads, from what the up-projections read."""
        shape, dtype = k_rope.shape[:-1], k_rope.dtype
        q, kv = self.q_up.fprop(q_x, dtype), self.kv_up.fprop(kv_x, dtype)
        return self.heads.forward(q.unflatten(0, shape), kv.unflatten(0, shape), k_rope)

    def cache(self, rows: Tensor) -> Operand:
        """What is kept of attention's output [B * T, N * v]: in FP8 its E5M6 codes (paper, section 3.3.3)."""
        return ops.quantize_e5m6(rows) if isinstance(self.o, Fp8Product) else (rows,)

    def cached(self, kept: Operand, dtype: torch.dtype) -> tuple[Tensor, Operand]:
        """That output again, and as the output projection's wgrad reads it."""
        if not isinstance(self.o, Fp8Product):
            return kept[0], self.o.transposed(self.o.operand(kept[0]))
        packed, scales = kept
        width = self.heads.config.num_attention_heads * self.heads.config.v_head_dim
        return ops.dequantize_e5m6(packed, scales, width, dtype), ops.retile_e5m6(packed, scales, width)


class _LatentAttention(torch.autograd.Function):
    """Up from the latents, attention, and down again (eq. 2 to 11): [B, T, hidden].

    Saved: what these inputs are computed again from, k_rope, the logarithm of each row's sum, and the output
    of attention. Queries, keys and values are projected up a second time.
    """

    @staticmethod
    def forward(ctx: Any, q_in: Tensor, kv_in: Tensor, k_rope: Tensor, *args: Any) -> Tensor:
        *_, q_source, kv_source, core = args
        q_x, kv_x = core.q_up.operand(q_in.flatten(0, 1)), core.kv_up.operand(kv_in.flatten(0, 1))
        q, k, v = core.project_up(q_x, kv_x, k_rope)
        out, logsumexp = ops.causal_attention(q, k, v, core.scale, core.starts)
        rows = out.transpose(1, 2).reshape(q_x[0].shape[0], -1)
        if core.keep:
            save_groups(ctx, (k_rope, logsumexp), core.cache(rows), q_source.kept, kv_source.kept)
            ctx.q_again, ctx.kv_again, ctx.core = q_source.again, kv_source.again, core
            ctx.accumulation = accumulation()
        return core.o.fprop(core.o.operand(rows), k_rope.dtype).unflatten(0, k_rope.shape[:-1])

    @staticmethod
    @first_order_only("Attention")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        core: _Core = ctx.core
        (k_rope, logsumexp), kept, q_kept, kv_kept = saved_groups(ctx)
        shape, dtype = k_rope.shape[:-1], k_rope.dtype

        def through(by: Product, position: int, grad: Tensor, x_t: Callable[[], Operand]) -> Any:
            return product_backward(ctx, by, {position: grad.shape[-1]}, grad.flatten(0, 1), x_t, dtype)

        def by_head(rows: Tensor) -> Tensor:
            return rows.view(*shape, core.heads.config.num_attention_heads, -1).transpose(1, 2)

        out, out_t = core.cached(kept, dtype)
        grad_out, grad_o = through(core.o, 5, grad, lambda: out_t)
        q_x = core.q_up.operand(ctx.q_again(*q_kept).flatten(0, 1))
        kv_x = core.kv_up.operand(ctx.kv_again(*kv_kept).flatten(0, 1))
        q, k, v = core.project_up(q_x, kv_x, k_rope)
        grads = ops.causal_attention_backward(
            by_head(grad_out), q, k, v, by_head(out), logsumexp, core.scale, core.starts
        )
        del grad_out, q, k, v, out  # a third of what backward holds here
        grad_q, grad_kv, grad_k_rope = core.heads.backward(*grads)
        del grads
        grad_q_in, grad_q_up = through(core.q_up, 3, grad_q, partial(core.q_up.transposed, q_x))
        grad_kv_in, grad_kv_up = through(core.kv_up, 4, grad_kv, partial(core.kv_up.transposed, kv_x))
        inputs = grad_q_in.unflatten(0, shape), grad_kv_in.unflatten(0, shape), grad_k_rope
        return *inputs, *grad_q_up, *grad_kv_up, *grad_o, None, None, None
