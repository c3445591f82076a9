"""Where a backward pass puts its weight gradients: the one place that decides it.

By default they are returned to autograd, so that hooks, DDP, torch.compile and torch.autograd.grad see them.
Under `accumulate_weight_gradients` a product is added straight to the parameter's FP32 `.grad` by the
accumulating GEMM, which spares a tensor of the weight's size and two passes over it. With a queue that
product is not even computed yet: a pipeline runs it where its schedule has a gap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Queue = list[Callable[[], None]]
Product = Callable[[Tensor | None], Tensor]
"""Computes a weight gradient: given None returns it, given an FP32 tensor adds it to that and returns it."""


@dataclass(frozen=True, slots=True)
class Accumulation:
    """What a forward pass hands to its backward, which may run in another thread."""

    queue: Queue | None


_current: ContextVar[Accumulation | None] = ContextVar("deepseek_ext.accumulation", default=None)


@contextmanager
def accumulate_weight_gradients(queue: Queue | None = None) -> Iterator[None]:
    """Lets forward passes inside a `with` block add weight gradients straight to `.grad` in their backward.

    Covers fp8_linear, moe_ffn and the model's layers; FP32 parameters that reach them directly get their
    gradient this way, with the bits that autograd would accumulate, and everything else through autograd as
    ever. So does a parameter with tensor hooks, and so do gradients that torch.autograd.grad asks for. Not
    for a model wrapped in DDP, which must see gradients arrive.

    queue: where backward puts the products instead of computing them, as functions without arguments. The
    caller runs each of them once, in order, before it reads a `.grad`; a list per stage and micro-batch is
    what a pipeline schedules (the split of backward into input and weight parts; section 3.2.1).
    """
    token = _current.set(Accumulation(queue))
    try:
        yield
    finally:
        _current.reset(token)


def accumulation() -> Accumulation | None:
    """What holds for a forward pass that runs now; None: gradients are returned."""
    return _current.get()


def weight_gradient(ctx: Any, edge: int, how: Accumulation | None, product: Product) -> Tensor | None:
    """The gradient that a backward returns for its weight: the product, or None where it goes to `.grad`.

    ctx: the node that runs, whose edge number `edge` (tensor arguments are counted) leads to the weight.
    how: `accumulation()` as it was in forward; a gradient that may be differentiated itself is returned
    whatever it says.
    """
    if how is None or torch.is_grad_enabled():
        return product(None)
    parameter = _accumulates_into(ctx.next_functions[edge][0])
    if parameter is None:
        return product(None)

    def add() -> None:
        with torch.no_grad():
            # The first product becomes `.grad` as it is: no pass to fill it with zeros, and none to add.
            if parameter.grad is None:
                parameter.grad = product(None).contiguous()
            else:
                product(parameter.grad)

    if how.queue is None:
        add()
    else:
        how.queue.append(add)
    return None


def _accumulates_into(node: Any) -> Any:
    """The parameter whose `.grad` this node would only add to; None where autograd has more to do."""
    parameter: Any = getattr(node, "variable", None)
    # Tracing runs on subclasses of Tensor, and so do parameters sharded by DTensor.
    if type(parameter) not in (Tensor, nn.Parameter) or parameter.dtype != torch.float32:
        return None
    if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
        return None
    grad = parameter.grad
    if grad is not None and (type(grad) is not Tensor or grad.dtype != torch.float32 or grad.stride(-1) != 1):
        return None
    try:
        wanted = torch._C._will_engine_execute_node(node)
    except RuntimeError:  # torch's answer for a leaf that torch.autograd.grad was asked for
        return None
    return parameter if wanted else None
