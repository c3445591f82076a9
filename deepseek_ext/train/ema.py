"""Moving average of the weights, kept on the CPU and put in their place on request (paper, section 3.2.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..parallel.shard import shards_written
from .optimizer import local


class MovingAverage:
    """average = decay average + (1 - decay) weight after each step, FP32 in CPU memory, for every parameter.

    Buffers are not averaged: router biases follow the load of the moment. Step t uses
    min(decay, (t - 1) / (t + 8)), so that the average begins as the first step's weights and a short run's
    does not consist of its beginning.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        self._parameters = dict(model.named_parameters())
        self._averages = {
            name: local(p.detach()).to("cpu", torch.float32, copy=True)
            for name, p in self._parameters.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights as they are after optimizer step `step`, counted from 1."""
        decay = min(self.decay, (step - 1) / (step + 8))
        weights = [local(p.detach()).to("cpu", torch.float32) for p in self._parameters.values()]
        torch._foreach_lerp_(list(self._averages.values()), weights, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model with the averages for weights; afterwards it has its own again, to the bit.

        On the CPU nothing is copied, but for shards. FP8 codes and BF16 copies are made anew at the next use,
        both times.
        """
        own = {
            name: parameter.to_local().clone() if isinstance(parameter, DTensor) else parameter.data
            for name, parameter in self._parameters.items()
        }
        self._put(self._averages)
        try:
            yield
        finally:
            self._put(own)

    def tensors(self, whole: Callable[[str, Tensor], Tensor] = lambda _, held: held) -> dict[str, Tensor]:
        """The averages by the names that a checkpoint stores them under; `whole` as in optimizer_tensors."""
        return {stored_name(name): whole(name, average) for name, average in self._averages.items()}

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            if isinstance(parameter, DTensor):  # FSDP2 gathers from this memory
                parameter.to_local().copy_(values[name])
            else:
                parameter.data = values[name].to(parameter.device, parameter.dtype)
        shards_written(self.model)
        weights_changed = getattr(self.model, "weights_changed", None)
        if weights_changed is not None:
            weights_changed()


def stored_name(parameter: str) -> str:
    """The name of a parameter's average in a checkpoint."""
    return f"ema.{parameter}"
