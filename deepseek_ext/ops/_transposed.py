"""A weight's transpose as dgrad's product reads it."""

from __future__ import annotations

import torch
from torch import Tensor

_ops = torch.ops.deepseek_ext


def read_along_k_alone(codes: Tensor) -> bool:
    """Whether the FP8 product there takes only codes that lie along K: that of capability 9.0."""
    return codes.is_cuda and torch.cuda.get_device_capability(codes.device) == (9, 0)


def transposed_weight(codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [N, K] or [E, N, K] and scales as those of W^T: views, or copies where the product needs them.

    A copy moves two bytes a weight; the other product multiplies at half the rate or less.
    """
    if read_along_k_alone(codes) and codes.shape[-2] % 16 == 0:
        return _ops.transpose_blocks.default(codes, scales)
    return codes.mT, scales.mT
