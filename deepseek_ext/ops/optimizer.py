"""The optimizer's arithmetic, for many tensors in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference import optimizer as reference
from ._checks import dtype_of, shape_of
from ._library import serve_by_reference

_ops = torch.ops.deepseek_ext


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

    params, grads: float32, any shape; grads are not changed. exp_avgs (m), exp_avg_sqs (v): bfloat16 or
    float32, the parameter's shape; computed in FP32 and rounded to nearest even when stored, the update
    taking them unrounded. step counts from 1. Raises ValueError for lists or numbers that do not fit.
    Source: section 3.3.3, low-precision optimizer states.
    """
    _ops.adamw_step_.default(
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
    name: str, tensors: list[Tensor], params: list[Tensor], dtypes: tuple[torch.dtype, ...]
) -> None:
    if len(tensors) != len(params):
        raise ValueError(
            f"adamw_step_: {name} must hold {len(params)} tensors like params, got {len(tensors)}"
        )
    for i, (tensor, param) in enumerate(zip(tensors, params, strict=True)):
        if tensor.dtype not in dtypes:
            wanted = " or ".join(dtype_of(dtype) for dtype in dtypes)
            raise ValueError(f"adamw_step_: {name}[{i}] must be {wanted}, got {dtype_of(tensor)}")
        if tensor.shape != param.shape:
            raise ValueError(
                f"adamw_step_: {name}[{i}] must have the shape of params[{i}], {shape_of(param)}, "
                f"got {shape_of(tensor)}"
            )


def _fake(
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
    _check_list("params", params, params, (torch.float32,))
    _check_list("grads", grads, params, (torch.float32,))
    _check_list("exp_avgs", exp_avgs, params, (torch.bfloat16, torch.float32))
    _check_list("exp_avg_sqs", exp_avg_sqs, params, (torch.bfloat16, torch.float32))
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"adamw_step_: {name} must lie in [0, 1), got {beta}")
    if eps < 0.0:
        raise ValueError(f"adamw_step_: eps must not be negative, got {eps}")
    if step < 1:
        raise ValueError(f"adamw_step_: step must be at least 1, got {step}; count the first step as 1")


serve_by_reference(
    "adamw_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, *, "
    "float lr, float beta1, float beta2, float eps, float weight_decay, SymInt step, "
    "float grad_scale=1.0) -> ()",
    reference.adamw_step_,
    _fake,
)
