"""What a layer keeps of its input: not the value, but what it is computed again from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, islice
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor

T = TypeVar("T")


class Once(Generic[T]):
    """A value that the first call makes, as functools.cache would, without its 10 us to wrap a function."""

    __slots__ = ("_make", "_value")

    def __init__(self, make: Callable[[], T]) -> None:
        self._make: Callable[[], T] | None = make

    def __call__(self) -> T:
        if self._make is not None:
            self._value = self._make()
            self._make = None
        return self._value


class Recomputed(NamedTuple):
    """A tensor that backward can have again, bit for bit, as again(*kept).

    Layers multiply by `value`, which carries the gradient, and save `kept`. Several layers that read the same
    norm's output thus save one tensor between them, the norm's input.
    """

    value: Tensor
    kept: tuple[Tensor, ...]
    again: Callable[..., Tensor]


def as_it_is(x: Tensor) -> Recomputed:
    """x itself, saved whole."""
    return Recomputed(x, (x.detach(),), lambda kept: kept)


def save_groups(ctx: Any, *groups: Sequence[Tensor]) -> None:
    """save_for_backward of several groups of tensors; `saved_groups` returns them."""
    ctx.save_for_backward(*chain(*groups))
    ctx.group_sizes = [len(group) for group in groups]


def saved_groups(ctx: Any) -> list[tuple[Tensor, ...]]:
    saved = iter(ctx.saved_tensors)
    return [tuple(islice(saved, size)) for size in ctx.group_sizes]
