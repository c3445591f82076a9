"""What every layer needs to know of one call of the model, and the cache of a generation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import ModelConfig


class LatentCache:
    """What inference keeps per token and layer: the normed latent and the rotated shared key.

    At the released shape that is 576 numbers a token and layer, against 32,768 for full keys and values.
    Holds at most `capacity` tokens; `length` of them are filled.
    """

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.length = 0
        shape = (config.num_hidden_layers, batch, capacity)
        self._latent = torch.empty(*shape, config.kv_lora_rank, dtype=dtype, device=device)
        self._k_rope = torch.empty(*shape, config.qk_rope_head_dim, dtype=dtype, device=device)

    @property
    def capacity(self) -> int:
        return self._latent.shape[2]

    def append(self, layer: int, latent: Tensor, k_rope: Tensor) -> None:
        """Writes a layer's new tokens, latent [B, T, R] and k_rope [B, T, rope_dim], behind the old."""
        end = self.length + latent.shape[1]
        self._latent[layer, :, self.length : end] = latent
        self._k_rope[layer, :, self.length : end] = k_rope

    def read(self, layer: int, new: int) -> tuple[Tensor, Tensor]:
        """A layer's latents [B, S, R] and keys [B, S, rope_dim], with `new` tokens just appended."""
        end = self.length + new
        return self._latent[layer, :, :end], self._k_rope[layer, :, :end]

    def advance(self, new: int) -> None:
        """Counts tokens that every layer has appended."""
        self.length += new


@dataclass(frozen=True, slots=True)
class Context:
    """One call of the model, as its layers see it."""

    rotation: Tensor
    """Rotary factors of the call's positions, complex64 [T, rope_dim / 2]."""
    valid: Tensor | None = None
    """Which tokens are no padding, bool [B, T]; None: all. Padding counts in no router's load."""
    balance_alpha: float = 0.0
    """Weight of the balance loss; 0 leaves it out."""
    cache: LatentCache | None = None
    """The cache of a generation."""
    document_starts: Tensor | None = None
    """Where each position's document begins in its sequence, int32 [B, T]: the first position that it may
    attend to, at most itself and nowhere less than the one before; None: the start of the sequence."""
