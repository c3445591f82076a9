"""Puts rows of tokens in the order of the experts that want them, and brings them back.

T tokens, K choices a token, E experts, M rows in expert order. `rows` int32 [M] holds the token*K+k of each
row, `slots` int32 [T, K] the row of each (token, k): each is the other's inverse, and -1 in either means
"none". The rows of expert e are [offs[e-1], offs[e]); tokens ascend inside an expert, so the same indices
always give the same order.

Values are checked on the CPU and, with DSE_CHECK=1, on a GPU: a row or slot out of range raises ValueError.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._checks import (
    dtype_of,
    num_tiles,
    or_unknown,
    require,
    require_float,
    require_float32,
    require_int32,
    shape_of,
)
from ._kinds import explained, register_fake
from ._library import _fragment
from .derivatives import differentiable
from .quantize import _new_scales

_ops = torch.ops.deepseek_ext


class ExpertOrder(NamedTuple):
    rows: Tensor  # int32 [T*K]: token*K+k of each row in expert order, -1 past offs[-1]
    slots: Tensor  # int32 [T, K]: the row of each (token, k), -1 where its index is -1
    offs: Tensor  # int32 [E]: the end of each expert's rows


@explained
def expert_order(indices: Tensor, num_experts: int) -> ExpertOrder:
    """Sorts the (token, k) pairs by chosen expert, tokens ascending inside it: (rows, slots, offs).

    indices: int32 [T, K]; -1 means "not here" (its slot is -1, and the rows it leaves free at the end are
    -1). Returns int32 rows [T*K], slots [T, K] and offs [E], the end of each expert's rows; experts may be
    empty. Nothing is read back by the host on a GPU. Raises ValueError for another dtype or shape and, on
    the CPU (on a GPU with DSE_CHECK=1), for an index outside [-1, num_experts).
    """
    return ExpertOrder(*_ops.expert_order.default(indices, num_experts))


@explained
def gather_tiles(codes: Tensor, scales: Tensor, rows: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Brings quantised tokens into expert order: (codes [M, H], scales [M, ceil(H/128)]).

    codes: float8_e4m3fn [T, H] and scales: float32 [T, ceil(H/128)], as quantize_tiles makes them; rows:
    int32 [M] from expert_order, top_k its K. Row -1 becomes code 0, scale 1. Not differentiable. Raises
    ValueError for arguments that do not fit and, on the CPU (on a GPU with DSE_CHECK=1), for a row outside
    [-1, T*top_k).
    """
    return _ops.gather_tiles.default(codes, scales, rows, top_k)


@explained
def gather_rows(x: Tensor, rows: Tensor, top_k: int, weights: Tensor | None = None) -> Tensor:
    """Brings tokens into expert order: x [T, H] -> [M, H], a row of zeros for row -1.

    x: bfloat16, float16 or float32; rows: int32 [M] from expert_order (none twice), top_k its K. With weights
    (float32 [T, K]) each row is multiplied by its choice's weight in FP32 and rounded to x's dtype; without,
    it is copied bit for bit. Differentiable in x and weights: the gradient of x is combine_rows with the same
    weights. Raises ValueError for arguments that do not fit and, on the CPU (on a GPU with DSE_CHECK=1), for
    a row outside [-1, T*top_k), or in the backward for one named twice.
    """
    return _gather_rows(x, rows, top_k, weights)


@explained
def combine_rows(
    rows_out: Tensor, slots: Tensor, weights: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """Sums each token's rows: rows_out [M, H] in expert order -> [T, H] in rows_out's dtype.

    The sum starts from zero in FP32 and adds the rows in top-k order, each times its weight (float32 [T, K])
    if given, then `residual` ([T, H], rows_out's dtype), and is rounded once. slots: int32 [T, K] from
    expert_order; slot -1 adds nothing. rows_out: bfloat16, float16 or float32. Differentiable in rows_out,
    weights and residual: the gradient of rows_out is gather_rows with the same weights. Raises ValueError for
    arguments that do not fit and, on the CPU (on a GPU with DSE_CHECK=1), for a slot outside [-1, M), or in
    the backward for one named twice.
    """
    return _combine_rows(rows_out, slots, weights, residual)


# Fakes. They state the same requirements as the kernels, in the same words.


def _check_choices(op: str, name: str, x: Tensor) -> None:
    require_int32(op, name, x)
    require(
        x.dim() == 2 and x.shape[1] >= 1,
        f"{op}: {name} must be [T, K] with K >= 1, got shape {shape_of(x)}; give a row for each token",
    )
    require(
        or_unknown(x.numel() < 2**31),
        f"{op}: {name} must hold fewer than 2^31 choices, got shape {shape_of(x)}; split the tokens",
    )


def _check_list(op: str, name: str, layout: str, x: Tensor) -> None:
    require_int32(op, name, x)
    require(x.dim() == 1, f"{op}: {name} must be {layout}, got shape {shape_of(x)}; flatten it")


def _check_top_k(op: str, top_k: int) -> None:
    require(top_k >= 1, f"{op}: top_k must be at least 1, got {top_k}; pass the K of the indices")


def _check_matrix(op: str, name: str, layout: str, x: Tensor) -> None:
    require(
        x.dim() == 2,
        f"{op}: {name} must be {layout}, got shape {shape_of(x)}; flatten the leading dimensions",
    )
    require_float(op, name, x)


def _check_weights(op: str, weights: Tensor | None, wanted: list[int]) -> None:
    if weights is None:
        return
    require_float32(op, "weights", weights)
    require(
        list(weights.shape) == wanted,
        f"{op}: weights must be [T, K] = {wanted}, got {shape_of(weights)}; "
        "give one for each choice of a token",
    )


def _check_beside(
    op: str, name: str, x: Tensor, layout: str, wanted: list[int], of_name: str, of: Tensor
) -> None:
    require(
        x.dtype == of.dtype,
        f"{op}: {name} must be {dtype_of(of)} like {of_name}, got {dtype_of(x)}; convert one of them",
    )
    require(
        list(x.shape) == wanted,
        f"{op}: {name} must be {layout} = {wanted}, got {shape_of(x)}; "
        "pass the one that belongs to these tokens",
    )


def _expert_order_fake(indices: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    _check_choices("expert_order", "indices", indices)
    require(
        num_experts >= 1,
        f"expert_order: num_experts must be at least 1, got {num_experts}; "
        "pass the number of experts that the indices choose from",
    )
    tokens, top_k = indices.shape
    return indices.new_empty(tokens * top_k), indices.new_empty(tokens, top_k), indices.new_empty(num_experts)


def _inverse_order_fake(places: Tensor, size: int) -> Tensor:
    _check_list("inverse_order", "places", "[N]", places)
    require(size >= 0, f"inverse_order: size must not be negative, got {size}; pass the number of places")
    return places.new_empty(size)


def _gather_tiles_fake(codes: Tensor, scales: Tensor, rows: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    op = "gather_tiles"
    require(
        codes.dtype == torch.float8_e4m3fn,
        f"{op}: codes must be float8_e4m3fn, got {dtype_of(codes)}; make them with quantize_tiles",
    )
    require(
        codes.dim() == 2,
        f"{op}: codes must be [T, H], got shape {shape_of(codes)}; flatten the leading dimensions",
    )
    require_float32(op, "scales", scales, "pass the scales that came with codes")
    wanted = [codes.shape[0], num_tiles(codes.shape[1])]
    require(
        list(scales.shape) == wanted,
        f"{op}: scales must be [T, ceil(H/128)] = {wanted}, got {shape_of(scales)}; "
        "pass the scales that came with codes",
    )
    _check_list(op, "rows", "[M]", rows)
    _check_top_k(op, top_k)
    return codes.new_empty(rows.shape[0], codes.shape[1]), _new_scales(scales, rows.shape[0], wanted[1])


def _gather_rows_fake(x: Tensor, rows: Tensor, top_k: int, weights: Tensor | None = None) -> Tensor:
    op = "gather_rows"
    _check_matrix(op, "x", "[T, H]", x)
    _check_list(op, "rows", "[M]", rows)
    _check_top_k(op, top_k)
    _check_weights(op, weights, [x.shape[0], top_k])
    return x.new_empty(rows.shape[0], x.shape[1])


def _combine_rows_fake(
    rows_out: Tensor, slots: Tensor, weights: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    op = "combine_rows"
    _check_matrix(op, "rows_out", "[M, H]", rows_out)
    _check_choices(op, "slots", slots)
    _check_weights(op, weights, list(slots.shape))
    shape = [slots.shape[0], rows_out.shape[1]]
    if residual is not None:
        _check_beside(op, "residual", residual, "[T, H]", shape, "rows_out", rows_out)
    return rows_out.new_empty(shape)


def _row_dots_fake(x: Tensor, rows_out: Tensor, slots: Tensor) -> Tensor:
    op = "row_dots"
    _check_matrix(op, "rows_out", "[M, H]", rows_out)
    _check_choices(op, "slots", slots)
    _check_beside(op, "x", x, "[T, H]", [slots.shape[0], rows_out.shape[1]], "rows_out", rows_out)
    return x.new_empty(slots.shape, dtype=torch.float32)


for _name, _fake in (
    ("expert_order", _expert_order_fake),
    ("inverse_order", _inverse_order_fake),
    ("gather_tiles", _gather_tiles_fake),
    ("gather_rows", _gather_rows_fake),
    ("combine_rows", _combine_rows_fake),
    ("row_dots", _row_dots_fake),
):
    register_fake(_name, _fake)

# Nothing of these carries a gradient: autograd is passed over, at no cost.
for _name in ("expert_order", "inverse_order", "gather_tiles"):
    _fragment.impl(_name, torch.library.fallthrough_kernel, "Autograd")


# Autograd. Gathering and combining are each other's transposes, and either has row_dots as the gradient of
# its weights; so the gradients of all three are made of the three. Two operators serve gradients only:
#   inverse_order(places [N], size) -> int32 [size]: result[places[i]] = i, -1 where no i leads; where values
#       are checked it refuses a place named twice, since the gradient of a row named twice would be a sum.
#   row_dots(x [T, H], rows_out [M, H], slots [T, K]) -> float32 [T, K]: inner products of each token with its
#       rows, 0 for slot -1.


def _gather_rows_setup(ctx: Any, inputs: tuple[Tensor, Tensor, int, Tensor | None], output: Tensor) -> None:
    x, rows, top_k, weights = inputs
    ctx.save_for_backward(None if weights is None else x, rows, weights)
    ctx.tokens, ctx.top_k = x.shape[0], top_k


def _gather_rows_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, rows, weights = ctx.saved_tensors
    slots = _ops.inverse_order.default(rows, ctx.tokens * ctx.top_k).view(ctx.tokens, ctx.top_k)
    grad_x = grad_weights = None
    if ctx.needs_input_grad[0]:
        grad_x = combine_rows(grad, slots, weights)
    if weights is not None and ctx.needs_input_grad[3]:
        grad_weights = _row_dots(x, grad, slots)
    return grad_x, None, None, grad_weights


def _combine_rows_setup(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, Tensor | None], output: Tensor
) -> None:
    rows_out, slots, weights, residual = inputs
    ctx.save_for_backward(None if weights is None else rows_out, slots, weights)
    ctx.num_rows, ctx.has_residual = rows_out.shape[0], residual is not None


def _combine_rows_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    rows_out, slots, weights = ctx.saved_tensors
    grad_rows = grad_weights = None
    if ctx.needs_input_grad[0]:
        grad_rows = _rows_of_tokens(grad, slots, ctx.num_rows, weights)
    if weights is not None and ctx.needs_input_grad[2]:
        grad_weights = _row_dots(grad, rows_out, slots)
    return grad_rows, None, grad_weights, grad if ctx.has_residual else None


def _row_dots_setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _row_dots_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, rows_out, slots = ctx.saved_tensors
    needs_x, needs_rows = ctx.needs_input_grad[:2]
    grad_rows = _rows_of_tokens(x, slots, rows_out.shape[0], grad) if needs_rows else None
    return combine_rows(rows_out, slots, grad) if needs_x else None, grad_rows, None


def _rows_of_tokens(x: Tensor, slots: Tensor, num_rows: int, weights: Tensor | None) -> Tensor:
    """gather_rows for the rows that `slots` name."""
    rows = _ops.inverse_order.default(slots.flatten(), num_rows)
    return gather_rows(x, rows, slots.shape[1], weights)


_gather_rows = differentiable("gather_rows", _gather_rows_backward, _gather_rows_setup)
_combine_rows = differentiable("combine_rows", _combine_rows_backward, _combine_rows_setup)
_row_dots = differentiable("row_dots", _row_dots_backward, _row_dots_setup)
