"""One transformer block, and a multi-token prediction module around one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import ModelConfig
from .attention import Attention
from .context import Context
from .linear import Linear, Precision, high_precision
from .moe import DenseFFN, MoE
from .norm import RMSNorm
from .recompute import Recomputed


class Block(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x)): x [B, T, H] to the same, and the balance loss."""

    def __init__(self, config: ModelConfig, layer: int, precision: Precision) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer, precision)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        dense = layer < config.first_k_dense_replace
        self.mlp = DenseFFN(config, precision) if dense else MoE(config, precision)

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        x = x + self.self_attn(self.input_layernorm.recomputed(x), context)
        update, balance = self.mlp(self.post_attention_layernorm.recomputed(x), context)
        return x + update, balance


class MTPModule(Block):
    """Module k predicts the token k + 1 ahead from the depth before it (paper, section 2.2, eq. 21-23).

    Row i sees tokens up to i + k only. Embedding and head belong to the main model and are passed in.
    """

    def __init__(self, config: ModelConfig, layer: int, precision: Precision) -> None:
        super().__init__(config, layer, precision)
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = Linear(2 * config.hidden_size, config.hidden_size, high_precision(precision))
        self.shared_head = SharedHead(config)

    def forward(  # type: ignore[override]
        self, hidden: Tensor, embedded: Tensor, context: Context
    ) -> tuple[Tensor, Tensor | None]:
        """hidden of depth k-1 and embedded tokens k ahead, both [B, T-k, H], to depth k's hidden."""
        # Embedding first: the order of the released weights.
        x = _side_by_side(self.enorm.recomputed(embedded), self.hnorm.recomputed(hidden))
        return super().forward(self.eh_proj(x), context)

    def normed(self, hidden: Tensor) -> Tensor:
        """What the head that is shared with the main model reads of this depth's hidden state."""
        return self.shared_head.norm(hidden)


def _side_by_side(a: Recomputed, b: Recomputed) -> Recomputed:
    def again(*kept: Tensor) -> Tensor:
        return torch.cat([a_again(*kept[:cut]), b_again(*kept[cut:])], -1)

    a_again, b_again, cut = a.again, b.again, len(a.kept)
    return Recomputed(torch.cat([a.value, b.value], -1), a.kept + b.kept, again)


class SharedHead(nn.Module):
    """The norm before the head that the module shares with the main model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
