"""Rows in which matrices lie side by side: what leaves for another rank and what arrives from one.

Each matrix starts at a multiple of 16 bytes of its row, and so does every row. The three kernels of the
family, which only the exchange calls:
  exchange_ranks(indices [T, K], experts_per_rank, num_ranks) -> int32 [T, min(num_ranks, K)]: the ranks of a
      token's experts, ascending and each once, then -1.
  pack_rows(parts, rows [M] or None, top_k) -> uint8 [M, bytes]: row rows[i] // top_k of each part.
  unpack_rows(packed, rows [M], top_k, columns, dtype, weighted) -> (rows, scales, weights): the inverse, with
      scales if dtype is E4M3, and of the K gate weights of a row number rows[i] % top_k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import dtype_of, num_tiles, require, shape_of
from ._kinds import register_fake
from ._library import _fragment
from .permute import _check_choices, _check_list, _check_top_k
from .quantize import _new_scales

ALIGNMENT = 16
_MOST_PARTS = 4


def section(size: int) -> int:
    """Bytes that a matrix of `size` bytes a row takes in a packed row."""
    return (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def row_bytes(columns: int, dtype: torch.dtype, top_k: int) -> int:
    """Bytes of a packed row of `columns` elements and, if top_k is not 0, as many FP32 numbers."""
    return section(columns * dtype.itemsize) + section(4 * top_k)


def tile_bytes(columns: int) -> int:
    """Bytes of a packed row of `columns` elements in E4M3 tiles."""
    return section(columns) + section(4 * num_tiles(columns))


def sections(packed: Tensor, *parts: tuple[int, torch.dtype]) -> list[Tensor]:
    """The matrices [R, columns] that lie side by side in packed rows, in place."""
    result, begin = [], 0
    for columns, dtype in parts:
        size = columns * dtype.itemsize
        result.append(packed[:, begin : begin + size].view(dtype))
        begin += section(size)
    return result


def packed_bytes(parts: list[Tensor]) -> int:
    return sum(section(part.shape[1] * part.dtype.itemsize) for part in parts)


# Fakes of the kernels, in the words of csrc/ops/exchange.h.


def _ranks_fake(indices: Tensor, experts_per_rank: int, num_ranks: int) -> Tensor:
    op = "exchange_ranks"
    _check_choices(op, "indices", indices)
    for name, value, remedy in (
        ("experts_per_rank", experts_per_rank, "divide the experts by the ranks"),
        ("num_ranks", num_ranks, "pass the size of the group"),
    ):
        require(1 <= value < 2**31, f"{op}: {name} must be at least 1 and below 2^31, got {value}; {remedy}")
    return indices.new_empty(indices.shape[0], min(num_ranks, indices.shape[1]))


def _pack_fake(parts: list[Tensor], rows: Tensor | None, top_k: int) -> Tensor:
    op = "pack_rows"
    require(
        1 <= len(parts) <= _MOST_PARTS,
        f"{op}: parts must be 1 to {_MOST_PARTS} matrices, got {len(parts)}; pack more in several calls",
    )
    tokens = parts[0].shape[0] if parts[0].dim() else 0
    for part in parts:
        require(
            part.dim() == 2 and part.shape[0] == tokens,
            f"{op}: parts must be [T, *] with T = {tokens} as in the first, got {shape_of(part)}; "
            "give the same tokens in each",
        )
    if rows is not None:
        _check_list(op, "rows", "[M]", rows)
        _check_top_k(op, top_k)
        tokens = rows.shape[0]
    return parts[0].new_empty(tokens, packed_bytes(parts), dtype=torch.uint8)


def _unpack_fake(
    packed: Tensor, rows: Tensor, top_k: int, columns: int, dtype: torch.dtype, weighted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    op = "unpack_rows"
    require(
        packed.dtype == torch.uint8 and packed.dim() == 2 and packed.is_contiguous(),
        f"{op}: packed must be contiguous uint8 [R, bytes], got {dtype_of(packed)} {shape_of(packed)}; "
        "pass what pack_rows made",
    )
    _check_list(op, "rows", "[M]", rows)
    _check_top_k(op, top_k)
    require(
        dtype in (torch.float8_e4m3fn, torch.bfloat16, torch.float16, torch.float32),
        f"{op}: dtype must be float8_e4m3fn, bfloat16, float16 or float32, got {dtype_of(dtype)}; "
        "pass that of the rows",
    )
    require(columns >= 0, f"{op}: columns must not be negative, got {columns}; pass the width")
    tiles = num_tiles(columns) if dtype == torch.float8_e4m3fn else 0
    width = row_bytes(columns, dtype, 0) + section(4 * tiles) + (section(4 * top_k) if weighted else 0)
    require(
        packed.shape[1] == width,
        f"{op}: packed must have rows of {width} bytes, got {shape_of(packed)}; "
        "pass the columns, dtype and top_k that were packed",
    )
    count = rows.shape[0]
    weights = packed.new_empty(count if weighted else 0, dtype=torch.float32)
    return packed.new_empty(count, columns, dtype=dtype), _new_scales(packed, count, tiles), weights


for _name, _fake in (
    ("exchange_ranks", _ranks_fake),
    ("pack_rows", _pack_fake),
    ("unpack_rows", _unpack_fake),
):
    register_fake(_name, _fake)
    _fragment.impl(_name, torch.library.fallthrough_kernel, "Autograd")  # no gradient passes here
