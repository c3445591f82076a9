"""What the gemm family computes, in plain PyTorch.

A result is the sum over 128-deep blocks of K, in order of k, of (product of the codes) x (product of the
two scales). `accumulator` says in which arithmetic: "fp32" is the operators' own, "fp64" is what their
error bound is measured from, "h800" models the tensor core whose short accumulator is the reason for the
blocks.

Shapes: M rows, N columns, K depth, E experts; a [M, K] and b [N, K] are codes, [M, ceil(K/128)] their scales.
"""

from __future__ import annotations

import torch
from torch import Tensor

TILE = 128  # depth of a partial product, edge of a block
TENSOR_CORE_STEP = 32  # products a tensor core adds at once
TENSOR_CORE_BITS = 13  # mantissa bits its accumulator keeps


def gemm(
    a: Tensor,
    a_scales: Tensor,
    b: Tensor,
    b_scales: Tensor,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
    accumulator: str = "fp32",
    promote: int | None = TILE,
) -> Tensor:
    """Product A B^T [M, N] of quantised a [M, K] (1x128 tiles) and b [N, K] (128x128 blocks or 1x128 tiles).

    accumulator: "fp32", "fp64" or "h800". promote (h800 only): 128 adds each 128-deep partial product to an
    FP32 sum outside the tensor core (paper, section 3.3.2); None leaves the sum inside for the whole of K,
    which needs scales that do not vary along K. Raises ValueError for an accumulator or promote it does not
    know.
    """
    if accumulator not in ("fp32", "fp64", "h800"):
        raise ValueError(
            f"reference.gemm: accumulator {accumulator!r} is unknown; write 'fp32', 'fp64' or 'h800'"
        )
    if promote not in (TILE, None) or (promote is None and accumulator != "h800"):
        raise ValueError(
            f"reference.gemm: promote={promote!r} is not possible with accumulator {accumulator!r}"
        )
    dtype = torch.float64 if accumulator == "fp64" else torch.float32
    if b_scales.shape[0] != b.shape[0]:  # blocks: one row of scales for 128 rows of codes
        b_scales = b_scales.repeat_interleave(TILE, 0)[: b.shape[0]]
    if promote is None:
        if (a_scales != a_scales[:, :1]).any() or (b_scales != b_scales[:, :1]).any():
            raise ValueError("reference.gemm: promote=None needs scales that do not vary along K")
        scale = a_scales[:, :1] * b_scales[:, :1].T if a.shape[1] else 1.0
        return (tensor_core_product(a, b) * scale).to(out_dtype)
    out = torch.zeros(a.shape[0], b.shape[0], dtype=dtype, device=a.device)
    for block in range(a_scales.shape[1]):
        k = slice(TILE * block, TILE * (block + 1))
        if accumulator == "h800":
            product = tensor_core_product(a[:, k], b[:, k])
        else:
            product = a[:, k].to(dtype) @ b[:, k].to(dtype).T
        out += product * (a_scales[:, block, None].to(dtype) * b_scales[:, block].to(dtype))
    return out.to(out_dtype)


def gemm_accumulate_(out: Tensor, a: Tensor, a_scales: Tensor, b: Tensor, b_scales: Tensor) -> None:
    """out [M, N] FP32 += A B^T; the product is summed from zero and added once."""
    out += gemm(a, a_scales, b, b_scales, out_dtype=torch.float32)


def grouped_gemm(
    a: Tensor,
    a_scales: Tensor,
    b: Tensor,
    b_scales: Tensor,
    offs: Tensor,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
    accumulator: str = "fp32",
) -> Tensor:
    """Rows [offs[e-1], offs[e]) of a [M, K] times b[e]^T of b [E, N, K]: [M, N]; later rows are zero."""
    out = torch.zeros(a.shape[0], b.shape[1], dtype=out_dtype, device=a.device)
    start = 0
    for expert, end in enumerate(offs.tolist()):
        out[start:end] = gemm(
            a[start:end],
            a_scales[start:end],
            b[expert],
            b_scales[expert],
            out_dtype=out_dtype,
            accumulator=accumulator,
        )
        start = end
    return out


def grouped_gemm_wgrad(
    a_t: Tensor,
    a_scales_t: Tensor,
    b_t: Tensor,
    b_scales_t: Tensor,
    offs: Tensor,
    *,
    accumulator: str = "fp32",
) -> Tensor:
    """For each expert e, A_e^T B_e [N, K] over its own rows: [E, N, K] in FP32 (FP64 with that accumulator).

    a_t [N, M'] and b_t [K, M'] are grouped transposed: expert e's columns start at a multiple of 128.
    """
    dtype = torch.float64 if accumulator == "fp64" else torch.float32
    out = torch.zeros(offs.shape[0], a_t.shape[0], b_t.shape[0], dtype=dtype, device=a_t.device)
    tile, start = 0, 0
    for expert, end in enumerate(offs.tolist()):
        last = tile + (end - start + TILE - 1) // TILE
        columns, tiles = slice(TILE * tile, TILE * last), slice(tile, last)
        out[expert] = gemm(
            a_t[:, columns],
            a_scales_t[:, tiles],
            b_t[:, columns],
            b_scales_t[:, tiles],
            out_dtype=dtype,
            accumulator=accumulator,
        )
        tile, start = last, end
    return out


def grouped_gemm_wgrad_accumulate_(
    out: Tensor, a_t: Tensor, a_scales_t: Tensor, b_t: Tensor, b_scales_t: Tensor, offs: Tensor
) -> None:
    """out [E, N, K] FP32 += grouped_gemm_wgrad(...); an expert without rows is left as it is."""
    out += grouped_gemm_wgrad(a_t, a_scales_t, b_t, b_scales_t, offs)


def tensor_core_product(a: Tensor, b: Tensor) -> Tensor:
    """A B^T of codes [M, K] and [N, K] as an H800 tensor core adds it, in FP32 [M, N].

    Each step takes 32 products and the running sum, cuts all of them (two's complement, hence downwards) at
    13 bits below the largest one's leading bit, adds them exactly, and cuts the sum to 13 mantissa bits.
    """
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.float64, device=a.device)
    for k in range(0, a.shape[1], TENSOR_CORE_STEP):
        step = slice(k, k + TENSOR_CORE_STEP)
        addends = torch.cat(
            [total[:, :, None], a[:, step].double()[:, None, :] * b[:, step].double()[None, :, :]], dim=2
        )
        largest = addends.abs().amax(2, keepdim=True)
        total = _cut_below(_cut_below(addends, largest).sum(2), None)
    return total.float()


def _cut_below(x: Tensor, largest: Tensor | None) -> Tensor:
    """x rounded down to a multiple of 2^-13 times the leading bit of `largest` (of itself if None)."""
    _, exponent = torch.frexp(x if largest is None else largest)
    unit = TENSOR_CORE_BITS + 1 - exponent
    return torch.ldexp(torch.ldexp(x, unit).floor(), -unit)
