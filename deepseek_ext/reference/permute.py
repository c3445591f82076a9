"""Rows of tokens put in the order of the experts that want them, and brought back.

T tokens, K choices each, M rows in expert order. `rows` [M] says which token*K+k a row is, `slots` [T, K]
says in which row a (token, k) lies; each is the other's inverse, and -1 in either means "none".
"""

from __future__ import annotations

import torch
from torch import Tensor


def expert_order(indices: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Stable sort of the (token, k) pairs by expert: rows [T*K], slots [T, K], and ends offs [E]."""
    flat = indices.flatten()
    expert, order = torch.sort(torch.where(flat < 0, num_experts, flat), stable=True)
    experts = torch.arange(num_experts, dtype=expert.dtype, device=expert.device)
    offs = torch.searchsorted(expert, experts, right=True, out_int32=True)
    rows = torch.where(expert < num_experts, order, -1).int()
    return rows, inverse_order(rows, flat.numel()).view(indices.shape), offs


def inverse_order(places: Tensor, size: int) -> Tensor:
    """int32 [size] with result[places[i]] = i, and -1 where no i leads; places -1 lead nowhere."""
    result = places.new_full((size + 1,), -1, dtype=torch.int32)
    count = torch.arange(places.numel(), dtype=torch.int32, device=places.device)
    result.scatter_(0, torch.where(places < 0, size, places).long(), count)
    return result[:size]


def gather_tiles(codes: Tensor, scales: Tensor, rows: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Rows of codes [T, H] and scales [T, ceil(H/128)] in expert order; row -1 is code 0, scale 1."""
    token = rows.div(top_k, rounding_mode="floor")
    row_codes = _rows_or(codes.view(torch.uint8), token, 0).view(codes.dtype)
    return row_codes, _rows_or(scales, token, 1)


def gather_rows(x: Tensor, rows: Tensor, top_k: int, weights: Tensor | None = None) -> Tensor:
    """Rows of x [T, H] in expert order, [M, H], times weights [T, K] if given; row -1 is zero."""
    gathered = _rows_or(x, rows.div(top_k, rounding_mode="floor"), 0)
    if weights is None:
        return gathered
    product = gathered * _rows_or(weights.reshape(-1, 1), rows, 0)
    return product.to(x.dtype)


def combine_rows(
    rows_out: Tensor, slots: Tensor, weights: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """Sum over k, in order, of a token's rows_out [M, H] times weights [T, K]; plus residual [T, H].

    In FP32 (FP64 for FP64 rows), rounded once at the end.
    """
    wide = torch.promote_types(rows_out.dtype, torch.float32)
    total = rows_out.new_zeros(slots.shape[0], rows_out.shape[1], dtype=wide)
    for k, slot in enumerate(slots.unbind(1)):
        row = _rows_or(rows_out, slot, 0).to(wide)
        if weights is not None:
            row = row * weights[:, k, None]
        total = total + torch.where(slot[:, None] < 0, 0, row)
    return (total if residual is None else total + residual).to(rows_out.dtype)


def row_dots(x: Tensor, rows_out: Tensor, slots: Tensor) -> Tensor:
    """Inner products [T, K] of each token of x [T, H] with its rows of rows_out [M, H]; 0 for none."""
    wide = torch.promote_types(x.dtype, torch.float32)
    dots = [(x.to(wide) * _rows_or(rows_out, slot, 0)).sum(1) for slot in slots.unbind(1)]
    return torch.where(slots < 0, 0, torch.stack(dots, 1))


def _rows_or(x: Tensor, index: Tensor, missing: float) -> Tensor:
    """x[index], with a row of `missing` for index -1."""
    padded = torch.cat([x, x.new_full((1, x.shape[1]), missing)])
    return padded.index_select(0, torch.where(index < 0, x.shape[0], index))
