"""Matrix products of E4M3 codes with scales per tile or block: dense, grouped by expert, and for wgrad.

All of them add 128-deep FP32 partial products, each multiplied by the FP32 product of its two scales, to
the result in FP32 in order of k (DeepSeek-V3, section 3.3.2). Element by element, against FP64 of the
dequantised operands,

    |D - D64| <= (128 + ceil(K/128) + 4) * 2^-24 * sum_k |a_mk b_nk|

before the rounding to out_dtype. A GPU's tensor cores cut sums where the CPU rounds them: 272 then takes the
place of 128, and for E4M3 products on Hopper, which keep 13 bits, 4 * 34 * 2^11. The bits depend on no thread
count, and a row's bits depend neither on other rows nor on M within M <= 8, nor within M > 8 (grouped: within
M <= 64, and above). A NaN code makes its row or column NaN.

Shapes: M rows, N columns, K depth, E experts, KB = ceil(K/128). Codes are torch.float8_e4m3fn, scales
torch.float32 of any strides. Codes with stride 1 along K, those of b also with stride 1 along N, are read in
place: the transposed views of a weight's codes and scales are its transpose, at no cost. Codes of other
strides are copied first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import TILE, dtype_of, num_tiles, require, require_float32, require_int32, shape_of
from ._kinds import explained, register_fake
from .derivatives import require_no_grad


@explained
def gemm(
    a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, *, out_dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Product A B^T of quantised matrices: [M, N] in out_dtype, bfloat16 or float32.

    a: codes [M, K] in 1x128 tiles, a_scales [M, KB]. b: codes [N, K], either in 128x128 blocks with
    b_scales [ceil(N/128), KB] (a weight) or in 1x128 tiles with b_scales [N, KB] (weight gradients); the
    shape of b_scales tells. Not differentiable: see fp8_linear. Raises ValueError for arguments that do not
    fit or require grad.
    """
    require_no_grad("gemm", "fp8_linear", a=a, a_scales=a_scales, b=b, b_scales=b_scales)
    return _gemm(a, a_scales, b, b_scales, out_dtype=out_dtype)


@explained
def gemm_accumulate_(out: Tensor, a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor) -> None:
    """Adds A B^T to `out`, float32 [M, N] with stride 1 along N and any row stride.

    The product is summed from zero and added once. The other arguments and errors are gemm's.
    """
    require_no_grad("gemm_accumulate_", "fp8_linear", out=out, a=a, a_scales=a_scales, b=b, b_scales=b_scales)
    _gemm_accumulate_(out, a, a_scales, b, b_scales)


@explained
def grouped_gemm(
    a: Tensor,
    a_scales: Tensor,
    b: Tensor,
    b_scales: Tensor,
    offs: Tensor,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """One product per expert, rows [offs[e-1], offs[e]) of a times b[e]^T: [M, N] in out_dtype.

    a: codes [M, K] in 1x128 tiles, sorted by expert, a_scales [M, KB]. b: codes [E, N, K] in 128x128 blocks,
    b_scales [E, ceil(N/128), KB]. offs: int32 [E], the end of each expert's rows; experts may be empty. Rows
    from offs[-1] on are never read and are zero in the result. out_dtype: bfloat16 or float32. Not
    differentiable: see moe_ffn. Raises ValueError for arguments that do not fit or require grad and, on the
    CPU (on a GPU with DSE_CHECK=1), for offs that decrease or pass M.
    """
    require_no_grad("grouped_gemm", "moe_ffn", a=a, a_scales=a_scales, b=b, b_scales=b_scales)
    return _grouped_gemm(a, a_scales, b, b_scales, offs, out_dtype=out_dtype)


@explained
def grouped_gemm_wgrad(
    a_t: Tensor, a_scales_t: Tensor, b_t: Tensor, b_scales_t: Tensor, offs: Tensor
) -> Tensor:
    """Each expert's weight gradient, the sum over its own rows of outer products: float32 [E, N, K].

    a_t: codes [N, M'] of the output gradient, b_t: codes [K, M'] of the input, both grouped transposed (as
    quantize_tiles_transposed and retile write them): expert e's columns start at P(e), a multiple of 128,
    P(e+1) = P(e) + 128*ceil(m_e/128), with code 0 in the gaps; a_scales_t [N, M'/128], b_scales_t [K,
    M'/128]. offs: int32 [E], the end of each expert's rows before padding. An expert without rows gets exact
    zeros. Not differentiable: see moe_ffn. Raises ValueError for arguments that do not fit or require grad
    and, on the CPU (on a GPU with DSE_CHECK=1), for offs that decrease or need more than M' columns.
    """
    require_no_grad(
        "grouped_gemm_wgrad", "moe_ffn", a_t=a_t, a_scales_t=a_scales_t, b_t=b_t, b_scales_t=b_scales_t
    )
    return _grouped_gemm_wgrad(a_t, a_scales_t, b_t, b_scales_t, offs)


@explained
def grouped_gemm_wgrad_accumulate_(
    out: Tensor, a_t: Tensor, a_scales_t: Tensor, b_t: Tensor, b_scales_t: Tensor, offs: Tensor
) -> None:
    """Adds each expert's weight gradient to `out`, float32 [E, N, K] with stride 1 along K.

    The gradient is summed from zero and added once; an expert without rows keeps what it has. The other
    arguments and errors are grouped_gemm_wgrad's.
    """
    require_no_grad(
        "grouped_gemm_wgrad_accumulate_", "moe_ffn",
        out=out, a_t=a_t, a_scales_t=a_scales_t, b_t=b_t, b_scales_t=b_scales_t,
    )  # fmt: skip
    _grouped_gemm_wgrad_accumulate_(out, a_t, a_scales_t, b_t, b_scales_t, offs)


# Checks, in the words of csrc/ops/gemm.h: the fakes raise what the kernels raise (a test compares them).


def _check_codes(op: str, name: str, x: Tensor, layout: str, remedy: str) -> None:
    ndim = layout.count(",") + 1
    require(
        x.dim() == ndim,
        f"{op}: {name} must be {layout}, got shape {shape_of(x)}; reshape it before it is quantised",
    )
    require(
        x.dtype == torch.float8_e4m3fn,
        f"{op}: {name} must hold float8_e4m3fn codes, got {dtype_of(x)}; make them with {remedy}",
    )


def _check_scales(op: str, name: str, scales: Tensor, layout: str, wanted: list[int], codes: str) -> None:
    require_float32(op, name, scales, f"pass the scales that came with {codes}")
    require(
        list(scales.shape) == wanted,
        f"{op}: {name} must be {layout} = {wanted}, one scale for each tile or block of {codes}, "
        f"got {shape_of(scales)}; pass the scales that came with {codes}",
    )


def _check_depth(op: str, a_name: str, a: Tensor, b_name: str, b: Tensor, letter: str) -> None:
    require(
        a.shape[-1] == b.shape[-1],
        f"{op}: {a_name} and {b_name} must agree in their last dimension {letter}, got {shape_of(a)} and "
        f"{shape_of(b)}; transpose the one that has {letter} elsewhere",
    )


def _check_out_dtype(op: str, dtype: torch.dtype) -> None:
    require(
        dtype in (torch.bfloat16, torch.float32),
        f"{op}: out_dtype must be bfloat16 or float32, got {dtype_of(dtype)}; convert the result afterwards",
    )


def _check_out(op: str, out: Tensor, layout: str, wanted: list[int]) -> None:
    require_float32(op, "out", out, "accumulate in float32")
    require(
        list(out.shape) == wanted,
        f"{op}: out must be {layout} = {wanted}, got {shape_of(out)}; pass a tensor of the product's shape",
    )
    require(
        out.shape[-1] <= 1 or out.stride(-1) == 1,
        f"{op}: out must have stride 1 along its last dimension, got {out.stride(-1)}; "
        "accumulate into a contiguous tensor",
    )


def _check_offs(op: str, offs: Tensor, experts: int | None) -> None:
    require_int32(op, "offs", offs)
    require(
        offs.dim() == 1,
        f"{op}: offs must be [E], the end of each expert's rows, got shape {shape_of(offs)}; flatten it",
    )
    if experts is not None:
        require(
            offs.shape[0] == experts,
            f"{op}: offs must hold one end for each of the {experts} experts of b, got {offs.shape[0]}; "
            "give experts without rows the end before theirs",
        )


def _check_operands(op: str, a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor) -> None:
    _check_codes(op, "a", a, "[M, K]", "quantize_tiles")
    _check_codes(op, "b", b, "[N, K]", "quantize_blocks or quantize_tiles")
    _check_depth(op, "a", a, "b", b, "K")
    depth = num_tiles(a.shape[1])
    _check_scales(op, "a_scales", a_scales, "[M, ceil(K/128)]", [a.shape[0], depth], "a")
    in_tiles = b_scales.dim() == 2 and b_scales.shape[0] == b.shape[0]
    rows, layout = (
        (b.shape[0], "[N, ceil(K/128)]")
        if in_tiles
        else (num_tiles(b.shape[0]), "[ceil(N/128), ceil(K/128)]")
    )
    _check_scales(op, "b_scales", b_scales, layout, [rows, depth], "b")


def _check_grouped(op: str, a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, offs: Tensor) -> None:
    _check_codes(op, "a", a, "[M, K]", "quantize_tiles")
    _check_codes(op, "b", b, "[E, N, K]", "quantize_blocks")
    _check_depth(op, "a", a, "b", b, "K")
    depth = num_tiles(a.shape[1])
    _check_scales(op, "a_scales", a_scales, "[M, ceil(K/128)]", [a.shape[0], depth], "a")
    wanted = [b.shape[0], num_tiles(b.shape[1]), depth]
    _check_scales(op, "b_scales", b_scales, "[E, ceil(N/128), ceil(K/128)]", wanted, "b")
    _check_offs(op, offs, b.shape[0])


def _check_wgrad(
    op: str, a_t: Tensor, a_scales_t: Tensor, b_t: Tensor, b_scales_t: Tensor, offs: Tensor
) -> None:
    _check_codes(op, "a_t", a_t, "[N, M']", "quantize_tiles_transposed")
    _check_codes(op, "b_t", b_t, "[K, M']", "quantize_tiles_transposed or retile")
    _check_depth(op, "a_t", a_t, "b_t", b_t, "M'")
    require(
        a_t.shape[1] % TILE == 0,
        f"{op}: a_t must have M' columns, a multiple of 128, got {a_t.shape[1]}; "
        "make it with quantize_tiles_transposed(x, offs)",
    )
    depth = a_t.shape[1] // TILE
    _check_scales(op, "a_scales_t", a_scales_t, "[N, M'/128]", [a_t.shape[0], depth], "a_t")
    _check_scales(op, "b_scales_t", b_scales_t, "[K, M'/128]", [b_t.shape[0], depth], "b_t")
    _check_offs(op, offs, None)


def _gemm_fake(
    a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor, *, out_dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    _check_operands("gemm", a, a_scales, b, b_scales)
    _check_out_dtype("gemm", out_dtype)
    return a.new_empty((a.shape[0], b.shape[0]), dtype=out_dtype)


def _gemm_accumulate_fake(out: Tensor, a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor) -> None:
    _check_operands("gemm_accumulate_", a, a_scales, b, b_scales)
    _check_out("gemm_accumulate_", out, "[M, N]", [a.shape[0], b.shape[0]])


def _grouped_gemm_fake(
    a: Tensor,
    a_scales: Tensor,
    b: Tensor,
    b_scales: Tensor,
    offs: Tensor,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    _check_grouped("grouped_gemm", a, a_scales, b, b_scales, offs)
    _check_out_dtype("grouped_gemm", out_dtype)
    return a.new_empty((a.shape[0], b.shape[1]), dtype=out_dtype)


def _grouped_gemm_wgrad_fake(
    a_t: Tensor, a_scales_t: Tensor, b_t: Tensor, b_scales_t: Tensor, offs: Tensor
) -> Tensor:
    _check_wgrad("grouped_gemm_wgrad", a_t, a_scales_t, b_t, b_scales_t, offs)
    return a_t.new_empty((offs.shape[0], a_t.shape[0], b_t.shape[0]), dtype=torch.float32)


def _grouped_gemm_wgrad_accumulate_fake(
    out: Tensor, a_t: Tensor, a_scales_t: Tensor, b_t: Tensor, b_scales_t: Tensor, offs: Tensor
) -> None:
    op = "grouped_gemm_wgrad_accumulate_"
    _check_wgrad(op, a_t, a_scales_t, b_t, b_scales_t, offs)
    _check_out(op, out, "[E, N, K]", [offs.shape[0], a_t.shape[0], b_t.shape[0]])


register_fake("gemm", _gemm_fake)
register_fake("gemm_accumulate_", _gemm_accumulate_fake)
register_fake("grouped_gemm", _grouped_gemm_fake)
register_fake("grouped_gemm_wgrad", _grouped_gemm_wgrad_fake)
register_fake("grouped_gemm_wgrad_accumulate_", _grouped_gemm_wgrad_accumulate_fake)

_gemm = torch.ops.deepseek_ext.gemm.default
_gemm_accumulate_ = torch.ops.deepseek_ext.gemm_accumulate_.default
_grouped_gemm = torch.ops.deepseek_ext.grouped_gemm.default
_grouped_gemm_wgrad = torch.ops.deepseek_ext.grouped_gemm_wgrad.default
_grouped_gemm_wgrad_accumulate_ = torch.ops.deepseek_ext.grouped_gemm_wgrad_accumulate_.default
