"""Which derivatives exist, and what is said where one does not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._checks import require
from ._library import NAMESPACE

Backward = Callable[..., tuple[Any, ...]]


def differentiable(op: str, backward: Backward, setup_context: Callable[..., None]) -> Callable[..., Any]:
    """Registers the derivative of operator `op`, and returns what calls the operator from Python.

    backward, setup_context: as torch.library.register_autograd takes them. What that registers reads the
    schema anew in each call, which takes 10 to 50 us: torch.compile, torch.vmap and calls through torch.ops
    go there, all others to an autograd.Function of our own. Calls name every keyword-only argument.
    """
    torch.library.register_autograd(f"{NAMESPACE}::{op}", backward, setup_context=setup_context)
    run = getattr(torch.ops.deepseek_ext, op).default

    def forward(ctx: Any, *args: Any) -> Any:
        *inputs, options = args
        with torch._C._AutoDispatchBelowAutograd():
            output = run(*inputs, **options)
        keywords = {"keyword_only_inputs": options} if options else {}
        setup_context(ctx, inputs=tuple(inputs), output=output, **keywords)
        return output

    def with_options(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        return *backward(ctx, *grads), None

    members = {"forward": staticmethod(forward), "backward": staticmethod(with_options)}
    node: Any = type(op, (torch.autograd.Function,), members)

    def call(*args: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return run(*args, **options)
        if torch.is_grad_enabled():
            return node.apply(*args, options)
        with torch._C._AutoDispatchBelowAutograd():
            return run(*args, **options)

    return call


def first_order_only(op: str) -> Callable[[Backward], Backward]:
    """Lets a backward's gradients be computed under create_graph, and refuses to differentiate them.

    Backward works on codes and on values computed again, which lead back to no input: a gradient penalty
    would take them for constants. torch's once_differentiable notices that only if the gradient that comes in
    is differentiable itself. op: whose backward it is, as the NotImplementedError names it.
    """

    def decorate(backward: Backward) -> Backward:
        @functools.wraps(backward)
        def first_order(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
            if not torch.is_grad_enabled():  # which create_graph alone changes
                return backward(ctx, *grads)
            ctx.accumulation = None  # a weight's gradient must pass the refusal, too
            with torch.no_grad():
                results = backward(ctx, *grads)
            # Autograd visits only what leads to a tensor it is asked for, so the refusal leads to them all.
            leads_to = *(grad for grad in grads if grad is not None), *_leaves(ctx)
            return tuple(_Refusal.apply(op, len(leads_to), *leads_to, *results))

        return first_order

    return decorate


def _leaves(node: Any) -> list[Tensor]:
    """The leaf tensors in which the graph below `node` ends."""
    seen, todo, leaves = {node}, [node], []
    while todo:
        for child, _ in todo.pop().next_functions:
            if child is None or child in seen:
                continue
            seen.add(child)
            todo.append(child)
            if hasattr(child, "variable"):
                leaves.append(child.variable)
    return leaves


class _Refusal(torch.autograd.Function):
    """The tensors after the first `skip` as they are, but nothing can be differentiated through them."""

    @staticmethod
    def forward(ctx: Any, op: str, skip: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.op = op
        return tensors[skip:]

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise NotImplementedError(
            f"{ctx.op}: second derivatives are not implemented; leave it out of what is differentiated "
            "twice, or compose it from torch's operators there"
        )


def require_no_grad(op: str, instead: str, **tensors: Tensor | None) -> None:
    """Raises ValueError where autograd would have to differentiate an operator that has no derivative."""
    if torch.is_grad_enabled():
        for name, tensor in tensors.items():
            require(
                tensor is None or not tensor.requires_grad,
                f"{op}: {name} must not require grad, since {op} has no derivative; "
                f"call {instead}, or pass {name}.detach()",
            )
