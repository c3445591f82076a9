"""Cross-entropy in place: a row of logits is read once and becomes its own gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import dtype_of, require, require_float, shape_of
from ._kinds import explained, register_fake
from .derivatives import require_no_grad

_ops = torch.ops.deepseek_ext


@explained
def cross_entropy_(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """-log softmax(logits)[target] of each row; logits become their gradient, softmax - onehot.

    logits: bfloat16, float16 or float32 [M, V], columns adjacent, written; targets: int64 [M], -100 for rows
    that do not count, whose loss and gradient are zero. Returns (losses float32 [M], in nats, choices int64
    [M], the first largest of each row). Computed in FP32, the gradient rounded once. Not differentiable:
    multiply the gradient. Raises ValueError for other dtypes and shapes, for logits that require grad and, on
    the CPU (on a GPU with DSE_CHECK=1), for targets that are no class.
    """
    require_no_grad("cross_entropy_", "torch.nn.functional.cross_entropy", logits=logits)
    return _ops.cross_entropy_.default(logits, targets)


# The fake. It states the same requirements as the kernel (csrc/ops/cross_entropy.h), in the same words.


def _cross_entropy_fake(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    op = "cross_entropy_"
    require_float(op, "logits", logits)
    require(
        logits.dim() == 2 and logits.shape[1] > 0,
        f"{op}: logits must be [M, V] with V > 0, got {shape_of(logits)}; "
        "flatten the leading dimensions into M",
    )
    require(
        targets.dtype == torch.int64,
        f"{op}: targets must be int64, got {dtype_of(targets)}; convert it with .long()",
    )
    require(
        targets.dim() == 1 and targets.shape[0] == logits.shape[0],
        f"{op}: targets must be [M] = {[logits.shape[0]]}, got {shape_of(targets)}; "
        "pass one class for each row",
    )
    rows = logits.shape[0]
    return logits.new_empty(rows, dtype=torch.float32), logits.new_empty(rows, dtype=torch.int64)


register_fake("cross_entropy_", _cross_entropy_fake)
