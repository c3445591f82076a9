"""What a layer keeps of its input: not the value, but what it is computed again from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

from torch import Tensor


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
