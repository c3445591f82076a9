"""Quantisation in tiles and blocks as plain PyTorch.

A tile is 1x128 elements of a row, a block 128x128 of a matrix; either may be cut short by the edge.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .formats import (
    E4M3_MAX,
    E5M6_MAX,
    TILE,
    decode_e5m6,
    encode_e4m3,
    encode_e5m6,
    finite_amax,
    saturate,
    scale_of,
)


def _num_tiles(k: int) -> int:
    return -(-k // TILE)


def _as_tiles(x: Tensor) -> Tensor:
    """[..., K] -> FP32 [..., ceil(K/128), 128], the last tile filled up with zeros."""
    tiles = _num_tiles(x.shape[-1])
    return pad(x.float(), (0, tiles * TILE - x.shape[-1])).reshape(*x.shape[:-1], tiles, TILE)


def _per_element(scales: Tensor, k: int, dim: int = -1) -> Tensor:
    """Repeats each tile's scale for its elements."""
    return scales.repeat_interleave(TILE, dim).narrow(dim, 0, k)


def quantize_tiles(x: Tensor, *, power_of_2: bool = False) -> tuple[Tensor, Tensor]:
    tiles = _as_tiles(x)
    scales, multiplier = scale_of(finite_amax(tiles, -1), E4M3_MAX, power_of_2)
    codes = encode_e4m3(tiles * multiplier[..., None]).flatten(-2)[..., : x.shape[-1]]
    return codes.contiguous().view(torch.float8_e4m3fn), scales


def grouped_starts(offs: Tensor) -> list[int]:
    """The first column of each group in the grouped transposed layout, and the end of the last."""
    starts = [0]
    begin = 0
    for end in offs.tolist():
        starts.append(starts[-1] + TILE * _num_tiles(end - begin))
        begin = end
    return starts


def _in_place_of_columns(x: Tensor, offs: Tensor | None) -> Tensor:
    """[M, K] -> [M', K]: each row where the transposed layout has its column, zero rows in the gaps."""
    m, k = x.shape
    if offs is None:
        return pad(x, (0, 0, 0, TILE * _num_tiles(m) - m))
    placed = x.new_zeros(TILE * (m // TILE + len(offs)), k)
    begin = 0
    for start, end in zip(grouped_starts(offs), offs.tolist(), strict=False):
        placed[start : start + end - begin] = x[begin:end]
        begin = end
    return placed


def quantize_tiles_transposed(
    x: Tensor, offs: Tensor | None = None, *, power_of_2: bool = False
) -> tuple[Tensor, Tensor]:
    return quantize_tiles(_in_place_of_columns(x, offs).T, power_of_2=power_of_2)


def quantize_tiles_both(
    x: Tensor, offs: Tensor | None = None, *, power_of_2: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = x
    if offs is not None:
        used = int(offs[-1])
        rows = pad(x[:used], (0, 0, 0, x.shape[0] - used))
    return (
        *quantize_tiles(rows, power_of_2=power_of_2),
        *quantize_tiles_transposed(x, offs, power_of_2=power_of_2),
    )


def quantize_blocks(w: Tensor, *, power_of_2: bool = False) -> tuple[Tensor, Tensor]:
    *lead, n, k = w.shape
    rows, columns = _num_tiles(n), _num_tiles(k)
    padded = pad(w.float(), (0, columns * TILE - k, 0, rows * TILE - n))
    blocks = padded.reshape(*lead, rows, TILE, columns, TILE)
    scales, multiplier = scale_of(finite_amax(blocks, (-3, -1)), E4M3_MAX, power_of_2)
    codes = encode_e4m3(blocks * multiplier[..., :, None, :, None]).reshape(padded.shape)[..., :n, :k]
    return codes.contiguous().view(torch.float8_e4m3fn), scales


def transpose_blocks(codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    layout = torch.contiguous_format
    return codes.mT.clone(memory_format=layout), scales.mT.clone(memory_format=layout)


def _dequantize(values: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """In FP32, then rounded to `dtype`; for float64 the exact product."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return saturate(values.to(wide) * scales.to(wide), dtype)


def dequantize_tiles(codes: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return _dequantize(codes, _per_element(scales, codes.shape[-1]), dtype)


def dequantize_blocks(codes: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    *_, n, k = codes.shape
    return _dequantize(codes, _per_element(_per_element(scales, k), n, -2), dtype)


def retile(
    codes: Tensor, scales: Tensor, offs: Tensor | None = None, *, power_of_2: bool = True
) -> tuple[Tensor, Tensor]:
    return quantize_tiles_transposed(dequantize_tiles(codes, scales), offs, power_of_2=power_of_2)


def pack_e5m6(codes: Tensor) -> Tensor:
    """12-bit codes [..., K] -> uint8 [..., 12*ceil(K/8)]: two codes in three bytes, low bits first."""
    even, odd = pad(codes, (0, -codes.shape[-1] % 8)).unflatten(-1, (-1, 2)).unbind(-1)
    word = even | odd << 12
    return torch.stack([word & 0xFF, word >> 8 & 0xFF, word >> 16], -1).flatten(-2).to(torch.uint8)


def unpack_e5m6(packed: Tensor, k: int) -> Tensor:
    low, middle, high = packed.to(torch.int32).unflatten(-1, (-1, 3)).unbind(-1)
    word = low | middle << 8 | high << 16
    return torch.stack([word & 0xFFF, word >> 12], -1).flatten(-2)[..., :k]


def quantize_e5m6(x: Tensor) -> tuple[Tensor, Tensor]:
    tiles = _as_tiles(x)
    scales, multiplier = scale_of(finite_amax(tiles, -1), E5M6_MAX, power_of_2=True)
    codes = encode_e5m6(tiles * multiplier[..., None]).flatten(-2)[..., : x.shape[-1]]
    return pack_e5m6(codes), scales


def dequantize_e5m6(packed: Tensor, scales: Tensor, k: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return _dequantize(decode_e5m6(unpack_e5m6(packed, k)), _per_element(scales, k), dtype)


def retile_e5m6(packed: Tensor, scales: Tensor, k: int, *, power_of_2: bool = True) -> tuple[Tensor, Tensor]:
    return quantize_tiles_transposed(dequantize_e5m6(packed, scales, k), power_of_2=power_of_2)
