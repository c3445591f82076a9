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
from .linear import Linear, Precision
from .norm import RMSNorm
from .product import (
    Fp8Product,
    Operand,
    Product,
    fprops,
    fprops_backward,
    input_again,
    product_backward,
)
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
        if context.cache is not None:
            return self._cached(x, context, context.cache)
        core, weights = self._core(context)
        return _Attention.apply(x.value, *weights, x, core)

    @torch.no_grad()
    def _cached(self, x: Recomputed, context: Context, cache: LatentCache) -> Tensor:
        """The same behind the tokens of the cache, which gets these."""
        core, _ = self._core(context)
        q, kv, k_rope = core.latents(x)
        cache.append(self.layer, kv.value, rotate(k_rope, context.rotation))
        if cache.length == 0:
            return core.attend(q.value, kv.value, k_rope)[0]
        heads = core.q_up.fprop(core.q_up.operand(q.value.flatten(0, 1)), k_rope.dtype)
        heads = heads.unflatten(0, k_rope.shape[:-1])
        return self.o_proj(self._attend_absorbed(heads, cache, context.rotation))

    def _core(self, context: Context) -> tuple[_Core, list[Tensor]]:
        """What this call computes with, and the weights in the order of `_Attention`'s arguments."""
        if self.config.q_lora_rank is None:
            downs, norms, q_up = [self.kv_a_proj_with_mqa], [self.kv_a_layernorm], self.q_proj
        else:
            downs, q_up = [self.q_a_proj, self.kv_a_proj_with_mqa], self.q_b_proj
            norms = [self.q_a_layernorm, self.kv_a_layernorm]
        core = _Core(
            heads=_Heads(self.config, context.rotation),
            scale=self.scale,
            downs=[down.product() for down in downs],
            norms=norms,
            q_up=q_up.product(),
            kv_up=self.kv_b_proj.product(),
            o=self.o_proj.product(),
            starts=context.document_starts,
            keep=torch.is_grad_enabled(),
        )
        layers: list[Any] = [*downs, q_up, self.kv_b_proj, self.o_proj, *norms]
        return core, [layer.weight for layer in layers]

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
    downs: list[Product]
    """Of the layer's input: to the query's latent, if queries have one, and to that of keys and values."""
    norms: list[RMSNorm]
    """Of these latents."""
    q_up: Product
    kv_up: Product
    o: Product
    starts: Tensor | None
    """`Context.document_starts`."""
    keep: bool
    """Whether a backward may follow."""

    def latents(self, x: Recomputed) -> tuple[Recomputed, Recomputed, Tensor]:
        """What queries, and keys and values, are projected up from; the key that heads share (eq. 1-6)."""
        c, shape = self.heads.config, x.value.shape[:-1]
        downs = fprops(self.downs, x.value.flatten(0, 1), x.value.dtype)
        *q_latents, compressed = (down.unflatten(0, shape) for down in downs)
        latent, k_rope = compressed.split([c.kv_lora_rank, c.qk_rope_head_dim], -1)
        *q, kv = (norm.recomputed(y) for norm, y in zip(self.norms, (*q_latents, latent), strict=True))
        return q[0] if q else x, kv, k_rope

    def project_up(self, q_x: Operand, kv_x: Operand, k_rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all heads, from what the up-projections read."""
        shape, dtype = k_rope.shape[:-1], k_rope.dtype
        q, kv = self.q_up.fprop(q_x, dtype), self.kv_up.fprop(kv_x, dtype)
        return self.heads.forward(q.unflatten(0, shape), kv.unflatten(0, shape), k_rope)

    def attend(self, q_in: Tensor, kv_in: Tensor, k_rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The layer's output (eq. 2 to 11), that of its heads [B * T, N * v], and the latter's logsumexp."""
        q_x, kv_x = self.q_up.operand(q_in.flatten(0, 1)), self.kv_up.operand(kv_in.flatten(0, 1))
        q, k, v = self.project_up(q_x, kv_x, k_rope)
        out, logsumexp = ops.causal_attention(q, k, v, self.scale, self.starts)
        rows = out.transpose(1, 2).reshape(q_x[0].shape[0], -1)
        y = self.o.fprop(self.o.operand(rows), k_rope.dtype)
        return y.unflatten(0, k_rope.shape[:-1]), rows, logsumexp

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


class _Attention(torch.autograd.Function):
    """x [B, T, hidden] to the same; the weights are in the order that `Attention._core` gives them.

    Saved: what x is computed again from, the latents before their norms, k_rope, the logarithm of each row's
    sum, and the output of the heads. Queries, keys and values are projected up a second time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> Tensor:
        *_, source, core = args
        q_in, kv_in, k_rope = core.latents(source)
        y, rows, logsumexp = core.attend(q_in.value, kv_in.value, k_rope)
        if core.keep:
            save_groups(ctx, (k_rope, logsumexp), core.cache(rows), source.kept, q_in.kept, kv_in.kept)
            ctx.again, ctx.q_again, ctx.core = source.again, q_in.again, core
            ctx.accumulation = accumulation()
        return y

    @staticmethod
    @first_order_only("Attention")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        core: _Core = ctx.core
        (k_rope, logsumexp), kept, x_kept, q_kept, kv_kept = saved_groups(ctx)
        shape, dtype, downs = k_rope.shape[:-1], k_rope.dtype, len(core.downs)

        def through(by: Product, position: int, grad: Tensor, x_t: Callable[[], Operand]) -> Any:
            return product_backward(ctx, by, {position: grad.shape[-1]}, grad.flatten(0, 1), x_t, dtype)

        def by_head(rows: Tensor) -> Tensor:
            return rows.view(*shape, core.heads.config.num_attention_heads, -1).transpose(1, 2)

        out, out_t = core.cached(kept, dtype)
        grad_out, grad_o = through(core.o, downs + 3, grad, lambda: out_t)
        q_x = core.q_up.operand(ctx.q_again(*q_kept).flatten(0, 1))
        kv_x = core.kv_up.operand(ops.rms_norm_again(*kv_kept).flatten(0, 1))
        q, k, v = core.project_up(q_x, kv_x, k_rope)
        grads = ops.causal_attention_backward(
            by_head(grad_out), q, k, v, by_head(out), logsumexp, core.scale, core.starts
        )
        del grad_out, q, k, v, out  # a third of what backward holds here
        grad_q, grad_kv, grad_k_rope = core.heads.backward(*grads)
        del grads
        grad_q_in, grad_q_up = through(core.q_up, downs + 1, grad_q, partial(core.q_up.transposed, q_x))
        grad_kv_in, grad_kv_up = through(core.kv_up, downs + 2, grad_kv, partial(core.kv_up.transposed, kv_x))
        del grad_q, grad_kv

        grad_latent, *grad_norms = ops.rms_norm_backward(grad_kv_in.unflatten(0, shape), *kv_kept)
        grad_downs = [torch.cat([grad_latent, grad_k_rope], -1).flatten(0, 1)]
        if downs == 2:
            grad_q_latent, grad_q_norm = ops.rms_norm_backward(grad_q_in.unflatten(0, shape), *q_kept)
            grad_downs.insert(0, grad_q_latent.flatten(0, 1))
            grad_norms.insert(0, grad_q_norm)
        x_t = partial(input_again, ctx.again, x_kept)
        grad_x, grad_down = fprops_backward(ctx, core.downs, 1, grad_downs, x_t, dtype)
        if downs == 1:
            grad_x.add_(grad_q_in)
        weights = *grad_down, *grad_q_up, *grad_kv_up, *grad_o
        return grad_x.view(grad.shape), *weights, *grad_norms, None, None
