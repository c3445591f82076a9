"""The number formats as plain PyTorch: what a code is, how a value becomes one, and the scale rule.

E4M3 comes from torch's own dtype, E5M6 from arithmetic on float64 and torch's float16, so that nothing here
shares a line with the kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

TILE = 128
E4M3_MAX = torch.finfo(torch.float8_e4m3fn).max  # 448
E5M6_MAX = 65024.0  # (2 - 2^-6) * 2^15
MIN_AMAX = 2.0**-110


def divide(a: float, b: Tensor) -> Tensor:
    """a / b, correctly rounded. (For a Python number `a`, torch computes a * (1 / b) instead.)"""
    return torch.full_like(b, a) / b


def scale_of(amax: Tensor, max_code: float, power_of_2: bool) -> tuple[Tensor, Tensor]:
    """The scale rule: FP32 amax of each tile or block -> its scale and the multiplier that goes with it."""
    empty = amax == 0
    a = amax.clamp(min=MIN_AMAX)
    scale = a / torch.full_like(a, max_code)
    multiplier = divide(max_code, a)
    if power_of_2:
        mantissa, _ = torch.frexp(
            scale
        )  # scale = mantissa * 2^e, mantissa in [0.5, 1): the division below is exact
        scale = torch.where(mantissa == 0.5, scale, scale / mantissa)
        multiplier = divide(1.0, scale)
    return scale.masked_fill(empty, 1.0), multiplier.masked_fill(empty, 1.0)


def finite_amax(values: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """The largest finite magnitude along `dim`, 0 where there is none."""
    return torch.where(values.isfinite(), values.abs(), 0.0).amax(dim)


def encode_e4m3(values: Tensor) -> Tensor:
    """FP32 -> E4M3 codes (uint8): nearest even, saturating; what is not finite becomes 0x7F."""
    codes = values.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)
    return torch.where(values.isfinite(), codes, 0x7F)


def encode_e5m6(values: Tensor) -> Tensor:
    """FP32 -> E5M6 codes (int32, 12 bits): nearest even, saturating; what is not finite becomes 0x7FF."""
    exact = values.double().clamp(-E5M6_MAX, E5M6_MAX)
    mantissa, _ = torch.frexp(exact.abs())
    power = torch.where(exact == 0, 0.0, exact.abs() / mantissa)  # the power of two above each value
    quantum = (
        power.clamp(min=2.0**-13) * 2.0**-7
    )  # 6 mantissa bits; below 2^-14 the subnormals' spacing, 2^-20
    rounded = ((exact / quantum).round() * quantum).clamp(-E5M6_MAX, E5M6_MAX)
    codes = (rounded.to(torch.float16).view(torch.int16).to(torch.int32) >> 4) & 0xFFF
    return torch.where(values.isfinite(), codes, 0x7FF)


def decode_e5m6(codes: Tensor) -> Tensor:
    """E5M6 codes (int32) -> FP32, exact: a code is the top 12 bits of an IEEE half."""
    halves = torch.where(codes >= 0x800, (codes << 4) - 0x10000, codes << 4).to(torch.int16)
    return halves.view(torch.float16).float()


def saturate(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds to `dtype`, with the largest finite value in place of infinity; NaN stays NaN."""
    limit = torch.finfo(dtype).max
    return values.clamp(-limit, limit).to(dtype)
