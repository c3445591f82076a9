"""FP8 (E4M3) and E5M6 quantisation in 1x128 tiles and 128x128 blocks.

Codes and scales carry no gradient.

The scale rule, for each tile or block, in FP32: amax is the largest finite magnitude; scale = max(amax,
2^-110) / 448 and code = round(x * (448 / max(amax, 2^-110))), to nearest even; scale = 1 where amax is 0.
With power_of_2 the scale is rounded up to a power of two. An element that is not finite becomes NaN and
leaves its neighbours as they were. DeepSeek-V3 technical report (arXiv 2412.19437), section 3.3.2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._checks import TILE, dtype_of, num_tiles, require, require_float, require_float_target, shape_of
from ._kinds import explained, register_fake
from ._library import _fragment

_ops = torch.ops.deepseek_ext
_E4M3 = torch.float8_e4m3fn


@explained
def quantize_tiles(x: Tensor, *, power_of_2: bool = False) -> tuple[Tensor, Tensor]:
    """Quantises each row in tiles of 128: x [..., K] -> (codes [..., K], scales [..., ceil(K/128)]).

    x is bfloat16, float16 or float32, codes float8_e4m3fn, scales float32, powers of two if power_of_2 is
    set; x is about codes * scales. The last tile of a row may be short. Raises ValueError for another dtype
    or a scalar. Source: section 3.3.2, activations.
    """
    return _ops.quantize_tiles.default(x, power_of_2=power_of_2)


@explained
def quantize_tiles_transposed(
    x: Tensor, offs: Tensor | None = None, *, power_of_2: bool = False
) -> tuple[Tensor, Tensor]:
    """Quantises each column in tiles of 128: x [M, K] -> (codes_t [K, M'], scales_t [K, M'/128]).

    Without offs M' = 128*ceil(M/128). With offs (int32 [E], the end offset of each expert's rows in x) expert
    e's columns start at a multiple of 128, P(e+1) = P(e) + 128*ceil(m_e/128), and M' = 128*(floor(M/128) +
    E); rows past offs[-1] are not read. Columns that hold no row have code 0, and scale 1 where a whole tile
    is empty. x is bfloat16, float16 or float32, codes_t float8_e4m3fn, scales_t float32, powers of two if
    power_of_2 is set. Raises ValueError for another dtype or shape and, on the CPU (on a GPU with
    DSE_CHECK=1), for offsets that do not ascend within M. Source: section 3.3.2, 1x128 to 128x1 tiles.
    """
    return _ops.quantize_tiles_transposed.default(x, offs, power_of_2=power_of_2)


@explained
def quantize_tiles_both(
    x: Tensor, offs: Tensor | None = None, *, power_of_2: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both directions of x [M, K] in one read: (codes, scales, codes_t, scales_t).

    Shapes, dtypes and errors are those of quantize_tiles and quantize_tiles_transposed. With offs, rows past
    offs[-1] have code 0 and scale 1.
    """
    return _ops.quantize_tiles_both.default(x, offs, power_of_2=power_of_2)


@explained
def quantize_blocks(w: Tensor, *, power_of_2: bool = False) -> tuple[Tensor, Tensor]:
    """Quantises a weight in 128x128 blocks: w [N, K] -> (codes [N, K], scales [ceil(N/128), ceil(K/128)]).

    A stack of weights [E, N, K] gives [E, N, K] and [E, ceil(N/128), ceil(K/128)]. w is bfloat16, float16 or
    float32, codes float8_e4m3fn, scales float32, powers of two if power_of_2 is set; blocks at the edges may
    be short. Raises ValueError for another dtype or shape. Source: section 3.3.2, weights.
    """
    return _ops.quantize_blocks.default(w, power_of_2=power_of_2)


@explained
def transpose_blocks(codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Transposes a quantised weight without quantising again: codes [N, K], scales -> those of W^T.

    scales is [ceil(N/128), ceil(K/128)]. Both results are contiguous; stacks [E, N, K] are transposed one by
    one. codes is float8_e4m3fn, scales float32. Raises ValueError for another dtype or shape.
    """
    return _ops.transpose_blocks.default(codes, scales)


@explained
def dequantize_tiles(codes: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """codes [..., K] times scales [..., ceil(K/128)], in FP32, then rounded to dtype: [..., K].

    codes is float8_e4m3fn, scales float32, dtype float32, bfloat16 or float16. A result beyond dtype's
    largest finite value becomes that value; NaN codes become NaN. Raises ValueError for another dtype or
    shape.
    """
    return _ops.dequantize_tiles.default(codes, scales, dtype)


@explained
def dequantize_blocks(codes: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """codes [N, K] times scales [ceil(N/128), ceil(K/128)], in FP32, then rounded to dtype: [N, K].

    A stack [E, N, K] takes scales [E, ceil(N/128), ceil(K/128)]. Dtypes, saturation and errors are those of
    dequantize_tiles.
    """
    return _ops.dequantize_blocks.default(codes, scales, dtype)


@explained
def retile(
    codes: Tensor, scales: Tensor, offs: Tensor | None = None, *, power_of_2: bool = True
) -> tuple[Tensor, Tensor]:
    """Turns 1x128 tiles into 128x1: codes [M, K], scales [M, ceil(K/128)] -> (codes_t [K, M'], scales_t).

    Equal, bit for bit, to quantize_tiles_transposed(dequantize_tiles(codes, scales), offs, power_of_2=...),
    in one pass; shapes and errors are those of quantize_tiles_transposed. codes is float8_e4m3fn, scales
    float32. Source: section 3.3.2, the backward's 1x128 -> 128x1.
    """
    return _ops.retile.default(codes, scales, offs, power_of_2=power_of_2)


@explained
def quantize_e5m6(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantises rows to 12-bit E5M6: x [..., K] -> (packed [..., 12*ceil(K/8)], scales [..., ceil(K/128)]).

    x is bfloat16, float16 or float32. packed is uint8, 8 codes in 12 bytes: code i of 8 is bits 12i..12i+11
    of the little-endian word, codes past K are 0. scales is float32, always a power of two. A code is the top
    12 bits of an IEEE half, at most 65024; NaN is 0x7FF. Raises ValueError for another dtype or a scalar.
    Source: section 3.3.3, inputs of the Linear after attention.
    """
    return _ops.quantize_e5m6.default(x)


@explained
def dequantize_e5m6(packed: Tensor, scales: Tensor, k: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The inverse of quantize_e5m6: packed [..., 12*ceil(k/8)], scales [..., ceil(k/128)] -> [..., k].

    packed is uint8, scales float32, dtype is float32, bfloat16 or float16; a result beyond its largest finite
    value becomes that value. Raises ValueError for another dtype or shape.
    """
    return _ops.dequantize_e5m6.default(packed, scales, k, dtype)


@explained
def retile_e5m6(packed: Tensor, scales: Tensor, k: int, *, power_of_2: bool = True) -> tuple[Tensor, Tensor]:
    """Turns E5M6 rows into E4M3 128x1 tiles: packed [M, 12*ceil(k/8)], scales -> (codes_t, scales_t).

    packed is uint8, scales float32 [M, ceil(k/128)]. Equal, bit for bit, to quantize_tiles_transposed(
    dequantize_e5m6(packed, scales, k), power_of_2=...): codes_t float8_e4m3fn [k, M'], scales_t float32 [k,
    M'/128], M' = 128*ceil(M/128). Raises ValueError for another dtype or shape. Source: section 3.3.3.
    """
    return _ops.retile_e5m6.default(packed, scales, k, power_of_2=power_of_2)


# Fakes. They state the same requirements as the kernels, in the same words.


def _check_rows(op: str, name: str, x: Tensor) -> None:
    require(x.dim() >= 1, f"{op}: {name} must be [..., K], got a scalar; reshape it to [1]")


def _check_matrix(op: str, name: str, x: Tensor) -> None:
    require(
        x.dim() == 2,
        f"{op}: {name} must be [M, K], got {shape_of(x)}; flatten the leading dimensions into M",
    )


def _check_weight(op: str, name: str, w: Tensor) -> None:
    require(
        w.dim() in (2, 3),
        f"{op}: {name} must be [N, K] or [E, N, K], got {shape_of(w)}; reshape it to one of them",
    )


def _check_offs(op: str, offs: Tensor | None) -> None:
    if offs is not None:
        require(
            offs.dtype == torch.int32 and offs.dim() == 1 and offs.shape[0] >= 1,
            f"{op}: offs must be int32 [E] with E >= 1, got {dtype_of(offs)} {shape_of(offs)}; "
            "give the end offset of each group",
        )


def _check_codes(op: str, codes: Tensor) -> None:
    require(
        codes.dtype == _E4M3,
        f"{op}: codes must be float8_e4m3fn, got {dtype_of(codes)}; quantise first",
    )


def _check_scales(op: str, scales: Tensor, expected: list[int], of: str) -> None:
    require(
        scales.dtype == torch.float32 and list(scales.shape) == expected,
        f"{op}: scales must be float32 {expected} for {of}, got {dtype_of(scales)} {shape_of(scales)}; "
        "pass the scales that were made with them",
    )


def _check_tiles(op: str, codes: Tensor, scales: Tensor) -> None:
    _check_rows(op, "codes", codes)
    _check_codes(op, codes)
    expected = [*codes.shape[:-1], num_tiles(codes.shape[-1])]
    _check_scales(op, scales, expected, f"codes {shape_of(codes)} in tiles of 128")


def _check_blocks(op: str, codes: Tensor, scales: Tensor) -> None:
    _check_weight(op, "codes", codes)
    _check_codes(op, codes)
    expected = [*codes.shape[:-2], num_tiles(codes.shape[-2]), num_tiles(codes.shape[-1])]
    _check_scales(op, scales, expected, f"codes {shape_of(codes)} in blocks of 128x128")


def _check_packed(op: str, packed: Tensor, scales: Tensor, k: int) -> None:
    _check_rows(op, "packed", packed)
    require(
        packed.dtype == torch.uint8,
        f"{op}: packed must be uint8, got {dtype_of(packed)}; use quantize_e5m6",
    )
    require(k >= 0, f"{op}: k must not be negative, got {k}; give the row length before packing")
    expected = [*packed.shape[:-1], 12 * ((k + 7) // 8)]
    require(
        list(packed.shape) == expected,
        f"{op}: packed must be {expected} for k = {k}, got {shape_of(packed)}; "
        "give k as it was before packing",
    )
    _check_scales(op, scales, [*packed.shape[:-1], num_tiles(k)], f"k = {k} in tiles of 128")


def _new_codes(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(shape, dtype=_E4M3)


def _new_scales(x: Tensor, *shape: int) -> Tensor:
    """Contiguous on the CPU; on CUDA M-major, the stride of the last dimension padded to 4 for TMA."""
    if x.device.type != "cuda":
        return x.new_empty(shape, dtype=torch.float32)
    strides: list[int] = []
    rows = 1
    for size in reversed(shape[:-1]):
        strides.insert(0, rows)
        rows *= size
    return x.new_empty_strided(shape, (*strides, (rows + 3) // 4 * 4), dtype=torch.float32)


def _new_transposed(x: Tensor, m: int, k: int, offs: Tensor | None) -> tuple[Tensor, Tensor]:
    tiles = num_tiles(m) if offs is None else m // TILE + offs.shape[0]
    return _new_codes(x, k, TILE * tiles), _new_scales(x, k, tiles)


def _fake_quantize_tiles(x: Tensor, *, power_of_2: bool = False) -> tuple[Tensor, Tensor]:
    _check_rows("quantize_tiles", "x", x)
    require_float("quantize_tiles", "x", x)
    return _new_codes(x, *x.shape), _new_scales(x, *x.shape[:-1], num_tiles(x.shape[-1]))


def _fake_quantize_tiles_transposed(
    x: Tensor, offs: Tensor | None = None, *, power_of_2: bool = False
) -> tuple[Tensor, Tensor]:
    _check_matrix("quantize_tiles_transposed", "x", x)
    require_float("quantize_tiles_transposed", "x", x)
    _check_offs("quantize_tiles_transposed", offs)
    return _new_transposed(x, x.shape[0], x.shape[1], offs)


def _fake_quantize_tiles_both(
    x: Tensor, offs: Tensor | None = None, *, power_of_2: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_matrix("quantize_tiles_both", "x", x)
    require_float("quantize_tiles_both", "x", x)
    _check_offs("quantize_tiles_both", offs)
    m, k = x.shape
    return _new_codes(x, m, k), _new_scales(x, m, num_tiles(k)), *_new_transposed(x, m, k, offs)


def _fake_quantize_blocks(w: Tensor, *, power_of_2: bool = False) -> tuple[Tensor, Tensor]:
    _check_weight("quantize_blocks", "w", w)
    require_float("quantize_blocks", "w", w)
    *lead, n, k = w.shape
    return _new_codes(w, *w.shape), _new_scales(w, *lead, num_tiles(n), num_tiles(k))


def _fake_transpose_blocks(codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    _check_blocks("transpose_blocks", codes, scales)
    *lead, n, k = codes.shape
    return _new_codes(codes, *lead, k, n), _new_scales(codes, *lead, num_tiles(k), num_tiles(n))


def _fake_dequantize_tiles(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    _check_tiles("dequantize_tiles", codes, scales)
    require_float_target("dequantize_tiles", "dtype", dtype)
    return codes.new_empty(codes.shape, dtype=dtype)


def _fake_dequantize_blocks(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    _check_blocks("dequantize_blocks", codes, scales)
    require_float_target("dequantize_blocks", "dtype", dtype)
    return codes.new_empty(codes.shape, dtype=dtype)


def _fake_retile(
    codes: Tensor, scales: Tensor, offs: Tensor | None = None, *, power_of_2: bool = True
) -> tuple[Tensor, Tensor]:
    _check_matrix("retile", "codes", codes)
    _check_tiles("retile", codes, scales)
    _check_offs("retile", offs)
    return _new_transposed(codes, codes.shape[0], codes.shape[1], offs)


def _fake_quantize_e5m6(x: Tensor) -> tuple[Tensor, Tensor]:
    _check_rows("quantize_e5m6", "x", x)
    require_float("quantize_e5m6", "x", x)
    *lead, k = x.shape
    packed = x.new_empty((*lead, 12 * ((k + 7) // 8)), dtype=torch.uint8)
    return packed, _new_scales(x, *lead, num_tiles(k))


def _fake_dequantize_e5m6(packed: Tensor, scales: Tensor, k: int, dtype: torch.dtype) -> Tensor:
    _check_packed("dequantize_e5m6", packed, scales, k)
    require_float_target("dequantize_e5m6", "dtype", dtype)
    return packed.new_empty((*packed.shape[:-1], k), dtype=dtype)


def _fake_retile_e5m6(
    packed: Tensor, scales: Tensor, k: int, *, power_of_2: bool = True
) -> tuple[Tensor, Tensor]:
    _check_matrix("retile_e5m6", "packed", packed)
    _check_packed("retile_e5m6", packed, scales, k)
    return _new_transposed(packed, packed.shape[0], k, None)


def _register(name: str, fake: Callable[..., object]) -> None:
    """Registers the fake and passes autograd over: codes and scales carry no gradient, at no cost."""
    register_fake(name, fake)
    _fragment.impl(name, torch.library.fallthrough_kernel, "Autograd")


_register("quantize_tiles", _fake_quantize_tiles)
_register("quantize_tiles_transposed", _fake_quantize_tiles_transposed)
_register("quantize_tiles_both", _fake_quantize_tiles_both)
_register("quantize_blocks", _fake_quantize_blocks)
_register("transpose_blocks", _fake_transpose_blocks)
_register("dequantize_tiles", _fake_dequantize_tiles)
_register("dequantize_blocks", _fake_dequantize_blocks)
_register("retile", _fake_retile)
_register("quantize_e5m6", _fake_quantize_e5m6)
_register("dequantize_e5m6", _fake_dequantize_e5m6)
_register("retile_e5m6", _fake_retile_e5m6)
