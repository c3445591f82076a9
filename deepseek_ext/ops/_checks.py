"""What the argument checks of all families share: one exception, and tensors in words."""

from __future__ import annotations

import torch
from torch import Tensor

TILE = 128


def num_tiles(k: int) -> int:
    """Tiles of 128 that cover k elements."""
    return (k + TILE - 1) // TILE


def require(condition: bool, message: str) -> None:
    """Raises ValueError with `message` unless the condition holds."""
    if not condition:
        raise ValueError(message)


def shape_of(x: Tensor) -> str:
    """[4, 128]: the shape as a message shows it."""
    return str(list(x.shape))


def dtype_of(x: Tensor | torch.dtype) -> str:
    """bfloat16: the dtype as a message shows it."""
    return str(x.dtype if isinstance(x, Tensor) else x).removeprefix("torch.")
