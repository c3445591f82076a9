"""Rows of tokens put in the order of the experts that want them, and brought back.

T tokens, K choices each, M rows in expert order. `rows` [M] says which token*K+k a row is, `slots` [T, K]
says in which row a (token, k) lies; each is the other's inverse, and -1 in either means "none".
"""

from __future__ import annotations

import torch
from torch import Tensor

PIECE = 1 << 17  # elements, 512 KiB in FP32: a sum over top-k then stays in the cache


def expert_order(indices: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Stable sort of the (token, k) pairs by expert: rows [T*K], slots [T, K], and ends offs [E]."""
    flat = indices.flatten()
    expert, order = torch.sort(torch.where(flat < 0, num_experts, flat), stable=True)
    experts = torch.arange(num_experts, dtype=expert.dtype, device=expert.device)
    offs = torch.searchsorted(expert, experts, right=True, out_int32=True)
    here = expert < num_experts
    rows = torch.where(here, order, -1).int()
    count = torch.arange(flat.numel(), dtype=torch.int32, device=flat.device)
    slots = torch.empty_like(rows).scatter_(0, order, torch.where(here, count, -1))
    return rows, slots.view(indices.shape), offs


def inverse(places: Tensor, size: int) -> Tensor:
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


def gather_rows(x: Tensor, rows: Tensor, top_k: int) -> Tensor:
    """Rows of x [T, H] in expert order, [M, H]; row -1 is zero."""
    return _rows_or(x, rows.div(top_k, rounding_mode="floor"), 0)


def combine_rows(
    rows_out: Tensor, slots: Tensor, weights: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """FP32 sum over k, in order, of a token's rows_out [M, H] times weights [T, K]; plus residual [T, H]."""
    tokens, hidden = slots.shape[0], rows_out.shape[1]
    padded = torch.cat([rows_out, rows_out.new_zeros(1, hidden)])
    slots = torch.where(slots < 0, rows_out.shape[0], slots)
    out = rows_out.new_empty(tokens, hidden)
    step = max(1, PIECE // max(1, hidden))
    for t in (slice(start, start + step) for start in range(0, tokens, step)):
        total = torch.zeros_like(out[t], dtype=torch.promote_types(out.dtype, torch.float32))
        for k, slot in enumerate(slots[t].unbind(1)):
            row = padded.index_select(0, slot)  # widened where it is added or multiplied
            total += row if weights is None else row * weights[t, k, None]
        out[t] = total if residual is None else total + residual[t]
    return out


def _rows_or(x: Tensor, index: Tensor, missing: float) -> Tensor:
    """x[index], with a row of `missing` for index -1."""
    padded = torch.cat([x, x.new_full((1, x.shape[1]), missing)])
    return padded.index_select(0, torch.where(index < 0, x.shape[0], index))
