"""Multi-head latent attention (paper, section 2.1.1).

Keys and values are projected up from one latent vector a token, and positions enter through a small key that
all heads share. Training attends over full keys and values; decoding works on the cached latents alone, with
the up-projections absorbed into query and output.

Shapes: B sequences, T tokens, S cached tokens, N heads, R = kv_lora_rank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..config import ModelConfig
from .context import Context, LatentCache
from .linear import Derived, Linear, Precision
from .norm import RMSNorm
from .rope import rotate, softmax_scale


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
            self.q_a_layernorm = RMSNorm(c.q_lora_rank, c.rms_norm_eps)
            self.q_b_proj = Linear(c.q_lora_rank, heads * c.qk_head_dim, precision)
        self.kv_a_proj_with_mqa = Linear(hidden, c.kv_lora_rank + c.qk_rope_head_dim, precision)
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank, c.rms_norm_eps)
        self.kv_b_proj = Linear(c.kv_lora_rank, heads * (c.qk_nope_head_dim + c.v_head_dim), precision)
        self.o_proj = Linear(heads * c.v_head_dim, hidden, precision)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        c = self.config
        direct = c.q_lora_rank is None
        q = self.q_proj(x) if direct else self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q = q.unflatten(-1, (-1, c.qk_head_dim))
        q_nope, q_rope = q.split([c.qk_nope_head_dim, c.qk_rope_head_dim], -1)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([c.kv_lora_rank, c.qk_rope_head_dim], -1)
        latent = self.kv_a_layernorm(latent)
        q_rope, k_rope = rotate(q_rope, context.rotation), rotate(k_rope, context.rotation)

        cache = context.cache
        if cache is not None:
            cache.append(self.layer, latent, k_rope)
        if cache is None or cache.length == 0:
            out = self._attend(q_nope, q_rope, latent, k_rope)
        else:
            out = self._attend_absorbed(q_nope, q_rope, cache)
        return self.o_proj(out.flatten(-2))

    def _attend(self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor) -> Tensor:
        """Attention over this call's tokens, with keys and values projected up: [B, T, N, v_head_dim]."""
        c = self.config
        kv = self.kv_b_proj(latent).unflatten(-1, (c.num_attention_heads, -1))
        k_nope, v = kv.split([c.qk_nope_head_dim, c.v_head_dim], -1)
        q = torch.cat([q_nope, q_rope], -1)
        k = torch.cat([k_nope, k_rope.unsqueeze(2).expand(-1, -1, c.num_attention_heads, -1)], -1)
        return causal_attention(q, k, v, self.scale)

    def _attend_absorbed(self, q_nope: Tensor, q_rope: Tensor, cache: LatentCache) -> Tensor:
        """Attention of T new tokens over S cached latents, the new ones included: [B, T, N, v_head_dim].

        (q W_k) . latent = q . (W_k latent), so no cached token is ever projected up.
        """
        tokens = q_nope.shape[1]
        latent, k_rope = cache.read(self.layer, tokens)
        w_k, w_v = self._absorbed_weights(q_nope.dtype)
        q_latent = torch.einsum("btnd,ndr->bntr", q_nope, w_k)
        scores = q_latent @ latent.unsqueeze(1).mT + q_rope.transpose(1, 2) @ k_rope.unsqueeze(1).mT
        seen = torch.ones(tokens, latent.shape[1], dtype=torch.bool, device=latent.device).tril(cache.length)
        scores = (scores.float() * self.scale).masked_fill(~seen, float("-inf"))
        mixed = scores.softmax(-1).to(latent.dtype) @ latent.unsqueeze(1)  # [B, N, T, R]
        return torch.einsum("bntr,nvr->btnv", mixed, w_v)

    def _absorbed_weights(self, dtype: torch.dtype) -> list[Tensor]:
        """kv_b_proj's weight as the forward multiplies by it, per head: [N, nope, R] for keys, [N, v, R]."""
        c = self.config

        def values(weight: Tensor) -> list[Tensor]:
            if self.kv_b_proj.precision == "fp8":
                weight = ops.dequantize_blocks(*ops.quantize_blocks(weight))
            per_head = weight.to(dtype).unflatten(0, (c.num_attention_heads, -1))
            return [part.contiguous() for part in per_head.split([c.qk_nope_head_dim, c.v_head_dim], 1)]

        return self.derive(values, self.kv_b_proj.weight)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Causal softmax(scale q k^T) v by torch's flash kernel: q, k [B, T, N, D], v and result [B, T, N, V].

    The kernel wants equal head widths, so the narrower side is padded with zeros, which changes no result;
    without that torch would fall back to a T x T matrix of scores.
    """
    width, value_width = q.shape[-1], v.shape[-1]
    if value_width < width:
        v = F.pad(v, (0, width - value_width))
    elif width < value_width:
        q, k = F.pad(q, (0, value_width - width)), F.pad(k, (0, value_width - width))
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return out.transpose(1, 2)[..., :value_width]
