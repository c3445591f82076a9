"""Puts rows of tokens in the order of the experts that want them, and brings them back.

T tokens, K choices a token, E experts, M rows in expert order. `rows` int32 [M] holds the token*K+k of each
row, `slots` int32 [T, K] the row of each (token, k): each is the other's inverse, and -1 in either means
"none". The rows of expert e are [offs[e-1], offs[e]); tokens ascend inside an expert, so the same indices
always give the same order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference import permute as reference
from ._checks import dtype_of, num_tiles, shape_of
from ._library import NAMESPACE, serve_by_reference

_ops = torch.ops.deepseek_ext


class ExpertOrder(NamedTuple):
    rows: Tensor  # int32 [T*K]: token*K+k of each row in expert order, -1 past offs[-1]
    slots: Tensor  # int32 [T, K]: the row of each (token, k), -1 where its index is -1
    offs: Tensor  # int32 [E]: the end of each expert's rows


def expert_order(indices: Tensor, num_experts: int) -> ExpertOrder:
    """Sorts the (token, k) pairs by chosen expert, tokens ascending inside it: (rows, slots, offs).

    indices: int32 [T, K]; -1 means "not here" (its slot is -1, and the rows it leaves free at the end are
    -1). Experts may be empty. Nothing is read back by the host on a GPU. Raises ValueError for another
    dtype or shape, and on the CPU for an index outside [-1, num_experts).
    """
    return ExpertOrder(*_ops.expert_order.default(indices, num_experts))


def gather_tiles(codes: Tensor, scales: Tensor, rows: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Brings quantised tokens into expert order: (codes [M, H], scales [M, ceil(H/128)]).

    codes: float8_e4m3fn [T, H] and scales: float32 [T, ceil(H/128)], as quantize_tiles makes them; rows:
    int32 [M] from expert_order, top_k its K. Row -1 becomes code 0, scale 1. Not differentiable. Raises
    ValueError for arguments that do not fit, and on the CPU for a row outside [-1, T*top_k).
    """
    return _ops.gather_tiles.default(codes, scales, rows, top_k)


def gather_rows(x: Tensor, rows: Tensor, top_k: int) -> Tensor:
    """Brings tokens into expert order: x [T, H] -> [M, H], a row of zeros for row -1.

    x: bfloat16, float16 or float32; rows: int32 [M] from expert_order (none twice), top_k its K.
    Differentiable in x: the gradient is combine_rows. Raises ValueError for arguments that do not fit, and
    on the CPU for a row outside [-1, T*top_k).
    """
    return _ops.gather_rows.default(x, rows, top_k)


def combine_rows(
    rows_out: Tensor, slots: Tensor, weights: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """Sums each token's rows: rows_out [M, H] in expert order -> [T, H] in rows_out's dtype.

    The sum starts from zero in FP32 and adds the rows in top-k order, each times its weight (float32 [T,
    K]) if given, then `residual` ([T, H], rows_out's dtype). slots: int32 [T, K] from expert_order; slot -1
    adds nothing. rows_out: bfloat16, float16 or float32. Differentiable in rows_out, weights and residual:
    the gradient of rows_out is gather_rows. Raises ValueError for arguments that do not fit, and on the CPU
    for a slot outside [-1, M).
    """
    return _ops.combine_rows.default(rows_out, slots, weights, residual)


def _check_index(op: str, name: str, x: Tensor, layout: str) -> None:
    if x.dtype != torch.int32:
        raise ValueError(f"{op}: {name} must be int32, got {dtype_of(x)}; convert it with .int()")
    if x.dim() != layout.count(",") + 1:
        raise ValueError(f"{op}: {name} must be {layout}, got shape {shape_of(x)}")


def _check_values(op: str, name: str, x: Tensor, end: int) -> None:
    """On the CPU only: reading an index on a GPU would make the host wait."""
    if x.device.type == "cpu" and x.numel() > 0:
        low, high = (int(v) for v in torch.aminmax(x))
        if low < -1 or high >= end:
            raise ValueError(f"{op}: {name} must lie in [-1, {end}), got {low if low < -1 else high}")


def _check_matrix(op: str, name: str, x: Tensor, layout: str) -> None:
    if x.dim() != 2:
        raise ValueError(
            f"{op}: {name} must be {layout}, got shape {shape_of(x)}; flatten the leading dimensions"
        )
    if x.dtype not in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        raise ValueError(f"{op}: {name} must be bfloat16, float16 or float32, got {dtype_of(x)}")


def _check_top_k(op: str, top_k: int) -> None:
    if top_k < 1:
        raise ValueError(f"{op}: top_k must be at least 1, got {top_k}; pass the K of the indices")


def _expert_order(indices: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    _check_values("expert_order", "indices", indices, num_experts)
    return reference.expert_order(indices, num_experts)


def _expert_order_fake(indices: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    _check_index("expert_order", "indices", indices, "[T, K]")
    if num_experts < 1:
        raise ValueError(f"expert_order: num_experts must be at least 1, got {num_experts}")
    tokens, top_k = indices.shape
    return indices.new_empty(tokens * top_k), indices.new_empty(tokens, top_k), indices.new_empty(num_experts)


def _gather_tiles(codes: Tensor, scales: Tensor, rows: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    _check_values("gather_tiles", "rows", rows, codes.shape[0] * top_k)
    return reference.gather_tiles(codes, scales, rows, top_k)


def _gather_tiles_fake(codes: Tensor, scales: Tensor, rows: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    op = "gather_tiles"
    if codes.dtype != torch.float8_e4m3fn:
        raise ValueError(
            f"{op}: codes must be float8_e4m3fn, got {dtype_of(codes)}; make them with quantize_tiles"
        )
    if codes.dim() != 2:
        raise ValueError(
            f"{op}: codes must be [T, H], got shape {shape_of(codes)}; flatten the leading dimensions"
        )
    if scales.dtype != torch.float32:
        raise ValueError(f"{op}: scales must be float32, got {dtype_of(scales)}")
    tiles = num_tiles(codes.shape[1])
    if scales.dim() != 2 or scales.shape[0] != codes.shape[0] or scales.shape[1] != tiles:
        raise ValueError(
            f"{op}: scales must be [T, ceil(H/128)] = [{codes.shape[0]}, {tiles}], got {shape_of(scales)}; "
            "pass the scales that came with codes"
        )
    _check_index(op, "rows", rows, "[M]")
    _check_top_k(op, top_k)
    return codes.new_empty(rows.shape[0], codes.shape[1]), scales.new_empty(rows.shape[0], tiles)


def _gather_rows(x: Tensor, rows: Tensor, top_k: int) -> Tensor:
    _check_values("gather_rows", "rows", rows, x.shape[0] * top_k)
    return reference.gather_rows(x, rows, top_k)


def _gather_rows_fake(x: Tensor, rows: Tensor, top_k: int) -> Tensor:
    _check_matrix("gather_rows", "x", x, "[T, H]")
    _check_index("gather_rows", "rows", rows, "[M]")
    _check_top_k("gather_rows", top_k)
    return x.new_empty(rows.shape[0], x.shape[1])


def _combine_rows(
    rows_out: Tensor, slots: Tensor, weights: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    _check_values("combine_rows", "slots", slots, rows_out.shape[0])
    return reference.combine_rows(rows_out, slots, weights, residual)


def _combine_rows_fake(
    rows_out: Tensor, slots: Tensor, weights: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    op = "combine_rows"
    _check_matrix(op, "rows_out", rows_out, "[M, H]")
    _check_index(op, "slots", slots, "[T, K]")
    if weights is not None:
        if weights.dtype != torch.promote_types(rows_out.dtype, torch.float32):
            raise ValueError(
                f"{op}: weights must be float32, got {dtype_of(weights)}; convert it with .float()"
            )
        if weights.shape != slots.shape:
            raise ValueError(f"{op}: weights must be [T, K] = {shape_of(slots)}, got {shape_of(weights)}")
    tokens, hidden = slots.shape[0], rows_out.shape[1]
    if residual is not None:
        if residual.dtype != rows_out.dtype:
            raise ValueError(
                f"{op}: residual must be {dtype_of(rows_out)} like rows_out, got {dtype_of(residual)}"
            )
        if residual.dim() != 2 or residual.shape[0] != tokens or residual.shape[1] != hidden:
            raise ValueError(
                f"{op}: residual must be [T, H] = [{tokens}, {hidden}], got {shape_of(residual)}"
            )
    return rows_out.new_empty(tokens, hidden)


serve_by_reference(
    "expert_order(Tensor indices, SymInt num_experts) -> (Tensor rows, Tensor slots, Tensor offs)",
    _expert_order,
    _expert_order_fake,
)
serve_by_reference(
    "gather_tiles(Tensor codes, Tensor scales, Tensor rows, SymInt top_k) -> (Tensor codes, Tensor scales)",
    _gather_tiles,
    _gather_tiles_fake,
)
serve_by_reference(
    "gather_rows(Tensor x, Tensor rows, SymInt top_k) -> Tensor", _gather_rows, _gather_rows_fake
)
serve_by_reference(
    "combine_rows(Tensor rows_out, Tensor slots, Tensor? weights=None, Tensor? residual=None) -> Tensor",
    _combine_rows,
    _combine_rows_fake,
)


def _gather_rows_setup(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    x, rows, top_k = inputs
    ctx.save_for_backward(rows)
    ctx.tokens, ctx.top_k = x.shape[0], top_k


def _gather_rows_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (rows,) = ctx.saved_tensors
    slots = reference.inverse(rows, ctx.tokens * ctx.top_k).view(ctx.tokens, ctx.top_k)
    return combine_rows(grad, slots), None, None


def _combine_rows_setup(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, Tensor | None], output: Tensor
) -> None:
    rows_out, slots, weights, residual = inputs
    ctx.save_for_backward(rows_out if weights is not None else None, slots, weights)
    ctx.num_rows, ctx.has_residual = rows_out.shape[0], residual is not None


def _combine_rows_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rows_out, slots, weights = ctx.saved_tensors
    needs_rows, grad_weights = ctx.needs_input_grad[0], None
    rows, top_k = reference.inverse(slots.flatten(), ctx.num_rows), slots.shape[1]
    grad_rows = gather_rows(grad, rows, top_k)
    if weights is not None and ctx.needs_input_grad[2]:
        dot = (grad_rows.to(weights.dtype) * rows_out).sum(1, keepdim=True)
        grad_weights = gather_rows(dot, slots.flatten(), 1).view_as(slots)
    if weights is not None and needs_rows:
        grad_rows = (grad_rows * gather_rows(weights.reshape(-1, 1), rows, 1)).to(grad.dtype)
    return grad_rows if needs_rows else None, None, grad_weights, grad if ctx.has_residual else None


for _name, _backward, _setup in (
    ("gather_rows", _gather_rows_backward, _gather_rows_setup),
    ("combine_rows", _combine_rows_backward, _combine_rows_setup),
):
    torch.library.register_autograd(f"{NAMESPACE}::{_name}", _backward, setup_context=_setup)
