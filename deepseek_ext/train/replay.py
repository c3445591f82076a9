"""A step that was not finite, run once more with a check at every layer: which one began it?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

_BROKEN = "forward; its {} is not finite"
NOTHING_FOUND = "no layer: when run again the step was finite, as after an error of memory or processor"
_OVERFLOWS = "backward; the gradient of its {}"


def first_not_finite(model: nn.Module, forward_backward: Callable[[], Tensor]) -> str:
    """The first layer whose output, then the first in backward order whose gradient, is not finite.

    forward_backward: runs the step again, adding to `.grad`, and returns its loss. Gradients are dropped
    before and after; buffers (router loads) and the state of the random numbers are as before, and what
    counts operators meanwhile (telemetry) does not see it.

    The answer begins with the layer's name where there is one: "model.layers.1.mlp.experts (forward)",
    "model.layers.0.mlp.down_proj (forward; its weight is not finite)".
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.zero_grad()
    try:
        with torch.random.fork_rng(devices=[]), _disable_current_modes(), _Watch(model) as watch:
            loss = forward_backward()
            return watch.forward or _beside_the_layers(model, loss) or watch.backward or _in_weights(model)
    finally:
        model.zero_grad()
        for buffer, before in buffers:
            buffer.copy_(before)


def first_of_ranks(model: nn.Module, found: Sequence[str]) -> str:
    """What came first of what each rank found in one step: others meet it later, with tokens or gradients."""
    order = {name: position for position, (name, _) in enumerate(model.named_modules())}

    def when(where: str) -> tuple[bool, int]:
        layer, _, rest = where.partition(" (")
        position = order.get(layer.removeprefix("what follows "), len(order))
        backward = rest.startswith("backward")
        return backward, -position if backward else position

    return min((where for where in found if where != NOTHING_FOUND), key=when, default=NOTHING_FOUND)


class _Watch:
    """Hooks on every module; `forward` and `backward` name the first value there that was not finite."""

    def __init__(self, model: nn.Module) -> None:
        self.forward: str | None = None
        self.backward: str | None = None
        self._handles = [
            handle
            for name, module in model.named_modules()
            if name
            for handle in (
                module.register_forward_pre_hook(partial(self._before, name)),
                module.register_forward_hook(partial(self._after, name)),
            )
        ]

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, name: str, module: nn.Module, args: Any) -> None:
        for tensor in _tensors(args):
            if tensor.requires_grad:
                tensor.register_hook(partial(self._gradient, name, module))

    def _after(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        for tensor in _tensors(output):
            if tensor.requires_grad:
                tensor.register_hook(partial(self._gradient, f"what follows {name}", None))
        if self.forward is None and not all(map(_finite, _tensors(output))):
            weight = _not_finite(module.named_parameters(prefix=name))
            self.forward = _of_parameter(weight, _BROKEN) if weight else f"{name} (forward)"

    def _gradient(self, name: str, module: nn.Module | None, gradient: Tensor) -> None:
        """Called once the gradients of all that the module computed from this input are there."""
        if self.backward is not None:
            return
        # A module's weights have theirs by now; one that overflows may be the only one.
        weight = module and _not_finite(_gradients(module.named_parameters(prefix=name)))
        if weight:
            self.backward = _of_parameter(weight, _OVERFLOWS)
        elif not _finite(gradient):
            self.backward = f"{name} (backward)"


def _beside_the_layers(model: nn.Module, loss: Tensor) -> str | None:
    """A loss that is not finite though every layer's output is: the head computes it, without hooks."""
    if _finite(loss):
        return None
    weight = _not_finite(model.named_parameters())
    return _of_parameter(weight, _BROKEN) if weight else "the loss (forward)"


def _in_weights(model: nn.Module) -> str:
    """What is left when all that flows between layers is finite: a weight's gradient, or the norm alone."""
    gradients = list(_gradients(model.named_parameters()))
    if weight := _not_finite(reversed(gradients)):
        return _of_parameter(weight, _OVERFLOWS)
    if not _finite(torch.nn.utils.get_total_norm([gradient for _, gradient in gradients])):
        largest, _ = max(gradients, key=lambda item: item[1].abs().amax().item())
        return _of_parameter(largest, "backward; its {}'s gradient is the largest, and the norm overflows")
    return NOTHING_FOUND


def _tensors(values: Any) -> Iterator[Tensor]:
    """The floating-point tensors in nested tuples."""
    if isinstance(values, Tensor):
        if values.is_floating_point():
            yield values
    elif isinstance(values, tuple):
        for value in values:
            yield from _tensors(value)


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _not_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    return next((name for name, tensor in named if not _finite(tensor)), None)


def _gradients(named: Iterable[tuple[str, nn.Parameter]]) -> Iterator[tuple[str, Tensor]]:
    return ((name, parameter.grad) for name, parameter in named if parameter.grad is not None)


def _of_parameter(parameter: str, remark: str) -> str:
    layer, _, name = parameter.rpartition(".")
    return f"{layer} ({remark.format(name)})"
