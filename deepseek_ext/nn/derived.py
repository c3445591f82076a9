"""What a layer makes from its weights once a step (FP8 codes, BF16 copies), and how it notices a new step."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

T = TypeVar("T")


class _Steps:
    """Counts the steps of every torch.optim optimizer of the process.

    A fused optimizer writes parameters without raising their version counters, and FSDP2 gathers written
    shards into a parameter whose counter it restores: neither leaves another trace.
    """

    count: ClassVar[int] = 0

    @classmethod
    def add(cls, *_: Any) -> None:
        cls.count += 1


register_optimizer_step_post_hook(_Steps.add)


@dataclass(slots=True)
class _Memo:
    """What was derived, and from what. Not attributes of the module, which are slow to set."""

    value: Any
    state: tuple[Any, ...]
    sources: tuple[weakref.ref[Tensor], ...]


class Derived(nn.Module):
    """A module that keeps what it derives from its weights until they change.

    It notices any step of any torch.optim optimizer, any in-place write that autograd can see, and another
    tensor or another storage in a weight's place. A write through `weight.data[...]`, by another process, or
    to the shards that a parameter is gathered from shows nowhere: call `weights_changed()` after it. Copies
    and pickles leave out what was derived.
    """

    _memo: _Memo | None = None

    def weights_changed(self) -> None:
        """Drops what was derived; the next use derives it again."""
        self._memo = None

    def derive(self, make: Callable[..., T], *weights: Tensor) -> T:
        """make(*weights), computed without gradient and kept until the weights change."""
        state = (_Steps.count, *map(_written, weights))
        memo = self._memo
        if memo is not None:
            if state == memo.state and all(
                source() is weight for source, weight in zip(memo.sources, weights, strict=True)
            ):
                return memo.value
            memo.value, memo.state = None, ()  # before the new one is made: they need not stand side by side
        # Out of inference mode too, whose tensors could not be saved for a later backward.
        with torch.inference_mode(False), torch.no_grad():
            value = make(*weights)
        sources = tuple(map(weakref.ref, weights))
        if memo is None:
            self._memo = _Memo(value, state, sources)
        else:
            memo.value, memo.state, memo.sources = value, state, sources
        return value

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Derived:
        self.weights_changed()  # do not hold what was derived on the device that is left
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_memo"}


def _written(weight: Tensor) -> tuple[int, int]:
    """What an in-place write, or another storage, changes; inference tensors count no versions."""
    return -1 if weight.is_inference() else weight._version, weight.data_ptr()
