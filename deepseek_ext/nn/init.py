"""Initial values, each parameter's from a generator of its own."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


def generator(seed: int, name: str, expert: int | None = None) -> torch.Generator:
    """The CPU generator of one parameter, or of one expert's part of it.

    Its seed is sha256 of "seed/name" or "seed/name/expert", the first 8 bytes as a little-endian number
    without its lowest bit. So a process that holds a part of the model draws the values that a process with
    all of it would.
    """
    text = f"{seed}/{name}" if expert is None else f"{seed}/{name}/{expert}"
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@torch.no_grad()
def initialise(module: nn.Module, *, seed: int, std: float) -> None:
    """Draws matrices from N(0, std), expert by expert where they are stacked; norms become ones.

    Names are those of `module`'s state dict, buffers keep what they hold. Parameters on the meta device are
    left.
    """
    for name, parameter in module.named_parameters():
        if parameter.is_meta:
            continue
        if parameter.dim() == 1:
            parameter.fill_(1.0)
        elif parameter.dim() == 3:
            for expert in range(parameter.shape[0]):
                parameter[expert] = _normal(parameter.shape[1:], std, generator(seed, name, expert))
        else:
            parameter.copy_(_normal(parameter.shape, std, generator(seed, name)))


def _normal(shape: torch.Size, std: float, source: torch.Generator) -> Tensor:
    return torch.empty(shape, dtype=torch.float32).normal_(0.0, std, generator=source)
