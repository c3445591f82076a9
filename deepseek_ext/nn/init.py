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
    left; of a sharded one this process draws all and keeps its part.
    """
    for name, parameter in module.named_parameters():
        if parameter.is_meta:
            continue
        plain = type(parameter) is nn.Parameter
        values = parameter if plain else torch.empty(parameter.shape)
        if parameter.dim() == 3:
            group = getattr(module.get_submodule(name.rpartition(".")[0]), "group", None)
            first = 0 if group is None else group.rank * parameter.shape[0]
            for expert, part in enumerate(values, start=first):
                part.copy_(_normal(part.shape, std, generator(seed, name, expert)))
        elif parameter.dim() == 2:
            values.copy_(_normal(values.shape, std, generator(seed, name)))
        else:
            values.fill_(1.0)
        if not plain:
            _keep_part(parameter, values)


def _keep_part(parameter: Tensor, values: Tensor) -> None:
    """Writes what this process holds of a sharded parameter, given all of it."""
    from torch.distributed.tensor import DTensor, distribute_tensor  # slow to import

    assert isinstance(parameter, DTensor)
    mesh, placements = parameter.device_mesh, parameter.placements
    part = distribute_tensor(values.to(parameter.device), mesh, placements, src_data_rank=None)
    parameter.to_local().copy_(part.to_local())


def _normal(shape: torch.Size, std: float, source: torch.Generator) -> Tensor:
    return torch.empty(shape, dtype=torch.float32).normal_(0.0, std, generator=source)
