"""The optimizer's arithmetic, for many tensors in one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._checks import dtype_of, require, require_own_memory, shape_of
from ._kinds import explained, register_fake
from ._library import _fragment

_ops = torch.ops.deepseek_ext


@explained
def adamw_step_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float = 1.0,
) -> None:
    """One AdamW step, in place, on lists of tensors of equal length; the i-th of each list belong together.

    g = grad_scale * grad, m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2,
    p = (1 - lr weight_decay) p - lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps).

    params, grads: float32, any shape and strides; grads are not changed. exp_avgs (m), exp_avg_sqs (v):
    bfloat16 or float32, the parameter's shape; computed in FP32 and rounded to nearest even when stored, the
    update taking them unrounded. No tensor may be named twice, and those written to must not share memory.
    step counts from 1. A captured CUDA graph repeats lr, step and the other numbers at every replay: leave
    this call out of the capture. Counts as an in-place change for autograd, and is never differentiated
    through. Raises ValueError for lists or numbers that do not fit. Source: section 3.3.3, low-precision
    optimizer states.
    """
    # Empty lists name no device, so that torch would find no kernel for them.
    run = _ops.adamw_step_.default if params or grads or exp_avgs or exp_avg_sqs else _check
    run(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        step=step,
        grad_scale=grad_scale,
    )


def _check_list(
    name: str, tensors: list[Tensor], params: list[Tensor], dtypes: tuple[torch.dtype, ...], written: bool
) -> None:
    require(
        len(tensors) == len(params),
        f"adamw_step_: {name} must hold {len(params)} tensors like params, got {len(tensors)}; "
        "leave a parameter without gradient out of all lists",
    )
    for i, (tensor, param) in enumerate(zip(tensors, params, strict=True)):
        wanted = " or ".join(dtype_of(dtype) for dtype in dtypes)
        require(
            tensor.dtype in dtypes,
            f"adamw_step_: {name}[{i}] must be {wanted}, got {dtype_of(tensor)}; convert it with .float()",
        )
        require(
            tensor.shape == param.shape,
            f"adamw_step_: {name}[{i}] must have the shape of params[{i}], {shape_of(param)}, "
            f"got {shape_of(tensor)}; keep the lists in one order",
        )
        if written:
            require_own_memory("adamw_step_", f"{name}[{i}]", tensor)


def _check(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float = 1.0,
) -> None:
    _check_list("params", params, params, (torch.float32,), True)
    _check_list("grads", grads, params, (torch.float32,), False)
    _check_list("exp_avgs", exp_avgs, params, (torch.bfloat16, torch.float32), True)
    _check_list("exp_avg_sqs", exp_avg_sqs, params, (torch.bfloat16, torch.float32), True)
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        require(
            0.0 <= beta < 1.0,
            f"adamw_step_: {name} must lie in [0, 1), got {beta}; 0.9 to 0.999 are usual",
        )
    require(eps >= 0.0, f"adamw_step_: eps must not be negative, got {eps}; 1e-8 is usual")
    require(step >= 1, f"adamw_step_: step must be at least 1, got {step}; count the first step as 1")


def _count_as_changed(keyset: Any, *lists: list[Tensor], **options: float) -> None:
    """Runs the kernel, then raises the version counters of what it wrote, which C++ operators do not do.

    Autograd then notices a change of a tensor it has saved, and a cache made from a weight that it is stale.
    """
    _ops.adamw_step_.default.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *lists, **options)
    params, _, exp_avgs, exp_avg_sqs = lists
    for tensors in (params, exp_avgs, exp_avg_sqs):
        torch.autograd.graph.increment_version([x for x in tensors if not x.is_inference()])


register_fake("adamw_step_", _check)
_fragment.impl("adamw_step_", torch.library.fallthrough_kernel, "Autograd")
_fragment.impl("adamw_step_", _count_as_changed, "ADInplaceOrView", with_keyset=True)
