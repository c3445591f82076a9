"""The output head, and its cross-entropy computed in chunks of tokens so that full logits never exist.

Shapes: M rows, H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..ops.derivatives import first_order_only
from .derived import Derived
from .linear import Precision, bf16_copy, stand_in
from .matmul import factor

# FP32 logits of a chunk: at 4 to 16 MB the product is efficient and what it writes stays cached.
_CHUNK_BYTES = 8 << 20
IGNORED = -100
"""The target that counts in no loss."""


class _CrossEntropySum(torch.autograd.Function):
    """Sum over rows of scale * -log softmax(hidden W^T)[target], and the head's choice for each row.

    Gradients are computed in forward, while a chunk's logits exist, and scaled in backward.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, values: Tensor, targets: Tensor, scale: Tensor, choose: bool
    ) -> tuple[Tensor, Tensor | None]:
        rows, vocabulary = hidden.shape[0], weight.shape[0]
        want_hidden, want_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if want_hidden else None
        grad_weight = torch.zeros_like(weight) if want_weight else None
        choices = torch.empty_like(targets) if choose else None
        total = scale.new_zeros(())
        step = max(1, _CHUNK_BYTES // (4 * vocabulary))
        w = factor(values)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            x = hidden[part].to(values.dtype)
            logits = F.linear(factor(x), w).to(values.dtype)
            losses, chosen = ops.cross_entropy_(logits, targets[part])  # logits are now their own gradient
            total += losses.sum()
            if choices is not None:
                choices[part] = chosen
            if grad_hidden is not None:
                grad_hidden[part] = factor(logits) @ w
            if grad_weight is not None:
                grad_weight += factor(logits).mT @ factor(x)
        ctx.save_for_backward(grad_hidden, grad_weight, scale)
        ctx.set_materialize_grads(False)
        if choices is not None:
            ctx.mark_non_differentiable(choices)
        return total * scale, choices

    @staticmethod
    @first_order_only("Head.cross_entropy")
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None, None, None
        grad_hidden, grad_weight, scale = ctx.saved_tensors
        factor = grad * scale
        return (
            None if grad_hidden is None else (grad_hidden * factor).to(grad_hidden.dtype),
            None if grad_weight is None else grad_weight * factor,
            *(None,) * 4,
        )


class Head(Derived):
    """Logits hidden W^T, W [V, H]: a BF16 product where the model is not fp32, loss in FP32."""

    def __init__(self, hidden: int, vocabulary: int, precision: Precision) -> None:
        super().__init__()
        self.precision = precision
        self.weight = nn.Parameter(torch.empty(vocabulary, hidden))

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [..., H] to logits [..., V] in the precision's dtype."""
        if self.precision == "fp32":
            return F.linear(hidden.float(), self.weight)
        copy = self.derive(bf16_copy, self.weight)
        logits = F.linear(factor(hidden.to(torch.bfloat16)), factor(stand_in(copy, self.weight)))
        return logits.to(torch.bfloat16)

    def cross_entropy(
        self, hidden: Tensor, targets: Tensor, scale: Tensor, *, choose: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Sum over rows of scale * cross-entropy, and each row's likeliest token if `choose`.

        hidden [..., H], targets int64 [...] with -100 for rows that do not count, scale and the sum
        FP32 scalars.
        """
        values = self.weight.detach() if self.precision == "fp32" else self.derive(bf16_copy, self.weight)
        rows, weight = hidden.flatten(0, -2), cast(Tensor, self.weight)
        if not torch.is_grad_enabled():  # a parameter would be given a gradient then too
            rows, weight = rows.detach(), weight.detach()
        total, choices = _CrossEntropySum.apply(rows, weight, values, targets.flatten(), scale, choose)
        return total, None if choices is None else choices.view(targets.shape)
