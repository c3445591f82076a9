"""Rotary position embedding on interleaved pairs, with YaRN's frequencies for extended contexts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config import ModelConfig


def _magnitude(factor: float, weight: float) -> float:
    """YaRN's attention magnitude for a context `factor` times as long."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def softmax_scale(config: ModelConfig) -> float:
    """The factor on attention scores: 1/sqrt(head width), times YaRN's squared magnitude where it is used."""
    scale = config.qk_head_dim**-0.5
    if config.rope_scaling is None:
        return scale
    return scale * _magnitude(config.rope_scaling["factor"], config.rope_scaling["mscale_all_dim"]) ** 2


def rotations(config: ModelConfig, start: int, length: int, device: torch.device) -> Tensor:
    """The rotation of each pair at `length` positions from `start` on: complex64 [length, rope_dim / 2]."""
    dim = config.qk_rope_head_dim
    frequencies = config.rope_theta ** -(torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
    magnitude = 1.0
    if config.rope_scaling is not None:
        yarn = config.rope_scaling
        frequencies = _yarn_frequencies(config, frequencies)
        magnitude = _magnitude(yarn["factor"], yarn["mscale"]) / _magnitude(
            yarn["factor"], yarn["mscale_all_dim"]
        )
    positions = torch.arange(start, start + length, device=device, dtype=torch.float32)
    angles = positions[:, None] * frequencies
    return torch.polar(torch.full_like(angles, magnitude), angles)


def _yarn_frequencies(config: ModelConfig, frequencies: Tensor) -> Tensor:
    """Divides slow frequencies by the factor, keeps fast ones, blends between (arXiv:2309.00071)."""
    yarn, dim = config.rope_scaling, config.qk_rope_head_dim
    assert yarn is not None

    def pair_that_turns(times: float) -> float:
        """The index of the pair that turns so many times over the original context."""
        wavelengths = yarn["original_max_position_embeddings"] / (times * 2 * math.pi)
        return dim * math.log(wavelengths) / (2 * math.log(config.rope_theta))

    low = max(math.floor(pair_that_turns(yarn["beta_fast"])), 0)
    high = min(math.ceil(pair_that_turns(yarn["beta_slow"])), dim - 1)
    index = torch.arange(dim // 2, device=frequencies.device, dtype=torch.float32)
    slow = ((index - low) / max(high - low, 0.001)).clamp(0, 1)
    return frequencies * (1 - slow) + frequencies / yarn["factor"] * slow


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotates the pairs (x0, x1), (x2, x3), ... of the last dimension, in FP32: x's shape and dtype.

    x: [B, T, heads, rope_dim] or [B, T, rope_dim]; rotation: complex64 [T, rope_dim / 2]. Each product and
    sum is rounded, as in rope_heads_: what decoding keeps has the bits that training has.
    """
    if x.dim() == 4:
        rotation = rotation[:, None]
    x0, x1 = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = rotation.real, rotation.imag
    return torch.stack([x0 * cosine - x1 * sine, x0 * sine + x1 * cosine], -1).flatten(-2).to(x.dtype)
