"""Inputs and the error bound that the tests of the gemm family share. Shapes: M rows, N columns, K depth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek_ext.reference import gemm as reference

TILE = 128

# What 128 products may lose, in units of 2^-24 of the sum of their magnitudes: one rounding each where they
# are added one by one; on tensor cores, eight times, 2^-23 of the largest for each of 17 numbers cut.
ADDED, CUT = 128, 8 * 17 * 2
# Hopper's FP8 products keep 13 bits after the largest number: four times, 2^-13 of it for each of 34.
HOPPER_CUT = 4 * 34 * 2 ** (24 - 13)
PARTIAL_SUMS = ADDED  # conftest.py sets CUT or HOPPER_CUT for the tests on a GPU
# Rows of codes begin at multiples of this many bytes; conftest.py sets 16 for Hopper, whose own gemm would
# else leave ragged K to the portable one.
ROW_BYTES = 1


def tiles(k: int) -> int:
    return -(-k // TILE)


def random_codes(shape: tuple[int, ...], rng: torch.Generator, kind: str = "any") -> Tensor:
    """Codes without NaN. any: all bit patterns, half of them small; positive; subnormal: below 2^-6."""
    raw = torch.randint(0, 256, shape, generator=rng, dtype=torch.int32)
    if kind == "positive":
        raw = raw % 126 + 1
    elif kind == "subnormal":
        raw = raw & 0x87
    else:
        small = torch.rand(shape, generator=rng) < 0.5
        raw = torch.where(small, raw & 0x9F, raw)
    raw = torch.where(raw & 0x7F == 0x7F, raw - 1, raw)
    codes = raw.to(torch.uint8).view(torch.float8_e4m3fn)
    stride = -(-shape[-1] // ROW_BYTES) * ROW_BYTES
    padded = torch.empty((*shape[:-1], stride), dtype=codes.dtype)[..., : shape[-1]]
    return padded.copy_(codes)


def random_scales(shape: tuple[int, ...], rng: torch.Generator, low: float = -12, high: float = 4) -> Tensor:
    """Scales spread evenly over the binary orders of magnitude 2^low .. 2^high."""
    return torch.exp2(low + (high - low) * torch.rand(shape, generator=rng))


@dataclass
class Operands:
    a: Tensor
    a_scales: Tensor
    b: Tensor
    b_scales: Tensor

    def __iter__(self):  # so that f(*operands) works
        return iter((self.a, self.a_scales, self.b, self.b_scales))

    def rows(self, start: int, end: int) -> Operands:
        return Operands(self.a[start:end], self.a_scales[start:end], self.b, self.b_scales)


def random_operands(
    m: int, n: int, k: int, rng: torch.Generator, *, b_tiles: bool = False, kind: str = "any", low=-12, high=4
) -> Operands:
    return Operands(
        random_codes((m, k), rng, kind),
        random_scales((m, tiles(k)), rng, low, high),
        random_codes((n, k), rng, kind),
        random_scales((n if b_tiles else tiles(n), tiles(k)), rng, low, high),
    )


def magnitude(codes: Tensor) -> Tensor:
    return (codes.view(torch.uint8) & 0x7F).view(torch.float8_e4m3fn)


def exact(o: Operands) -> tuple[Tensor, Tensor]:
    """The product in FP64, and sum_k |a_mk b_nk|."""
    product = reference.gemm(*o, out_dtype=torch.float64, accumulator="fp64")
    absolute = Operands(magnitude(o.a), o.a_scales, magnitude(o.b), o.b_scales)
    return product, reference.gemm(*absolute, out_dtype=torch.float64, accumulator="fp64")


def bound_of(k: int, absolute: Tensor) -> Tensor:
    """What the operators promise: (128 + ceil(K/128) + 4) * 2^-24 * sum_k |a_mk b_nk|, on a GPU with 272."""
    return (PARTIAL_SUMS + tiles(k) + 4) * 2.0**-24 * absolute


def agree(result: Tensor, other: Tensor) -> bool:
    """Whether results from codes in two layouts are what they should be: equal, to the last bit unless Hopper
    has a kernel of its own for one of the layouts."""
    if ROW_BYTES == 1:
        return torch.equal(result, other)
    return bool((result - other).abs().max() <= 1e-6 * other.abs().max())


def worst(result: Tensor, o: Operands) -> float:
    """Largest error in units of the bound; at most 1 keeps the promise."""
    product, absolute = exact(o)
    bound = bound_of(o.a.shape[1], absolute)
    error = (result.double() - product).abs()
    assert not result.isnan().any()
    return (torch.where(error == 0, 0.0, error / bound)).max().item() if error.numel() else 0.0


def assert_within_bound(result: Tensor, o: Operands) -> None:
    """Element by element; the message names the worst one."""
    product, absolute = exact(o)
    bound = bound_of(o.a.shape[1], absolute)
    error = (result.double() - product).abs()
    bad = ~(error <= bound)
    if bad.any():
        where = tuple(bad.nonzero()[0].tolist())
        raise AssertionError(
            f"{int(bad.sum())} of {bad.numel()} elements exceed the bound, first {where}: {result[where]}, "
            f"wanted {product[where]}, error {error[where]:.3e}, bound {bound[where]:.3e}"
        )
