"""Arguments of the wrong kind (a list for a tensor, a sparse one, one elsewhere), in the operator's words.

torch ends such calls in a dump of the schema, or computes nothing and says nothing: an operator of which one
argument is on the meta device runs as if all were.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from types import NoneType
from typing import Any, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from ._checks import dtype_of
from ._library import NAMESPACE

P = ParamSpec("P")
R = TypeVar("R")


def explained(function: Callable[P, R]) -> Callable[P, R]:
    """Ends a call with an argument of the wrong kind in one sentence of the form that all checks have.

    Looks for one only when a call has failed, so it costs nothing before.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Exception:
            wrong = _wrong_kind(function, args, kwargs)
            if wrong:
                raise ValueError(wrong) from None
            raise

    return call


def register_fake(op: str, fake: Callable[..., Any]) -> None:
    """Registers what stands in for operator `op` on fake and meta tensors, which must all be in one place."""

    @functools.wraps(fake)
    def checked(*args: Any, **kwargs: Any) -> Any:
        wrong = _two_devices(op, inspect.signature(fake).bind(*args, **kwargs).arguments)
        if wrong:
            raise ValueError(wrong)
        return fake(*args, **kwargs)

    torch.library.register_fake(f"{NAMESPACE}::{op}", checked)


def _wrong_kind(function: Callable[..., Any], args: Any, kwargs: Any) -> str | None:
    try:
        given = inspect.signature(function).bind(*args, **kwargs).arguments
    except TypeError:  # too many arguments, or too few: Python's own words are good
        return None
    hints = get_type_hints(function)
    for name, value in given.items():
        wrong = _unfit(hints[name], name, value)
        if wrong:
            return f"{function.__name__}: {wrong}"
    return _two_devices(function.__name__, given)


def _unfit(wanted: Any, name: str, value: Any) -> str | None:
    """What is wrong with an argument of the annotated type `wanted`."""
    inner = get_args(wanted)
    if wanted is NoneType:  # kept for later versions; the operator says what it thinks of other values
        return None
    if NoneType in inner:
        return None if value is None else _unfit(inner[0], name, value)
    if get_origin(wanted) is tuple:
        if not isinstance(value, (tuple, list)) or len(value) != len(inner):
            return f"{name} must be a tuple of {len(inner)}, got {_kind(value)}; quantize_blocks makes it"
        return next(filter(None, map(_unfit, inner, _items(name), value)), None)
    if get_origin(wanted) is list:
        if not isinstance(value, (tuple, list)):
            return f"{name} must be a list, got {_kind(value)}; put it into one"
        return next(filter(None, map(functools.partial(_unfit, inner[0]), _items(name), value)), None)
    if wanted is Tensor:
        return _no_plain_tensor(name, value)
    numbers = {int: (int, torch.SymInt), float: (int, float, torch.SymFloat), bool: (bool, torch.SymBool)}
    if isinstance(value, numbers.get(wanted, wanted)):
        return None
    names = " or ".join(kind.__name__ for kind in inner or (wanted,))
    return f"{name} must be of type {names}, got {_kind(value)}; convert it first"


def _items(name: str) -> Iterator[str]:
    return (f"{name}[{i}]" for i in range(1 << 30))


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _no_plain_tensor(name: str, value: Any) -> str | None:
    if not isinstance(value, Tensor):
        remedy = "pass one" if value is None else "make one of it with torch.as_tensor"
        return f"{name} must be a Tensor, got {_kind(value)}; {remedy}"
    kind = ""
    if value.is_nested:
        kind = "a nested one"
    elif value.layout is not torch.strided:
        kind = f"layout {str(value.layout).removeprefix('torch.')}"
    elif value.is_quantized:
        kind = f"torch's quantised {dtype_of(value)}"
    return f"{name} must be a plain dense tensor, got {kind}; convert it first" if kind else None


def _two_devices(op: str, given: dict[str, Any]) -> str | None:
    """The sentence for tensors in two places."""
    first: tuple[str, torch.device] | None = None
    for name, value in _tensors(given.items()):
        first = first or (name, value.device)
        if value.device != first[1]:
            return (
                f"{op}: {name} must be on the device of {first[0]}, {first[1]}, got {value.device}; "
                "move one of them with .to()"
            )
    return None


def _tensors(items: Any) -> Iterator[tuple[str, Tensor]]:
    for name, value in items:
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(zip(_items(name), value, strict=False))
