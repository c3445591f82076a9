"""A weight's transpose as dgrad's product reads it."""

from __future__ import annotations

import torch
from torch import Tensor

_ops = torch.ops.deepseek_ext


def reads_along_k_alone(device: torch.device) -> bool:
    """Whether the device's FP8 product takes only codes that lie along K: that of capability 9.0."""
    return (
        device.type == "cuda"
        and torch.cuda.is_available()
        and torch.cuda.get_device_capability(device) == (9, 0)
    )


def transposed_weight(codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [N, K] or [E, N, K] and scales as those of W^T: views, or copies where the product needs them.

    A copy moves two bytes a weight; the other product multiplies at half the rate or less.
    """
    if codes.shape[-2] % 16 == 0 and reads_along_k_alone(codes.device):
        return _ops.transpose_blocks.default(codes, scales)
    return codes.mT, scales.mT
