"""Inputs that the quantize tests share: every kind of number that can go wrong, in one matrix."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

FLOATS = [torch.float32, torch.bfloat16, torch.float16]

# Rows x columns: single elements, short tiles, exactly one tile, ragged in both directions, more than one
# batch of tiles, empty in either or both.
SHAPES = [
    (1, 1),
    (3, 100),
    (128, 128),
    (130, 300),
    (37, 576),
    (256, 192),
    (5, 2432),
    (300, 64),
    (0, 5),
    (5, 0),
    (0, 0),
]


def adversarial(rng: torch.Generator, m: int, k: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[m, k] of `dtype`: each 128x64 region of another kind, a few NaN, infinities and zeros anywhere."""
    finfo = torch.finfo(dtype)
    x = torch.randn(m, k, generator=rng, dtype=torch.float64)
    kinds = [
        lambda t: t,
        lambda t: t * finfo.max / 8,  # up to and beyond the largest finite value
        lambda t: t * 1e-7,
        lambda t: t * 2.0**-120,  # below the scale rule's floor
        lambda t: t * finfo.tiny * 2.0**-8,  # subnormal
        lambda t: t * 0,
        lambda t: t.abs().clamp(min=1e-3).log2().round().exp2() * t.sign(),  # powers of two
        lambda t: t * 2.0 ** torch.randint(-40, 40, t.shape, generator=rng),  # wide range inside a tile
        lambda t: (t * 64).round() / 8,  # many ties
    ]
    regions = itertools.product(range(0, m, 128), range(0, k, 64))
    for i, (r, c) in enumerate(regions):
        region = x[r : r + 128, c : c + 64]
        region.copy_(kinds[(i + m) % len(kinds)](region))
    x = x.clamp(-finfo.max, finfo.max).to(dtype)
    if m * k >= 50:
        for value in (float("nan"), float("inf"), float("-inf"), 0.0, -0.0):
            where = torch.randint(0, m * k, (1 + m * k // 4000,), generator=rng)
            x.view(-1)[where] = value
        x[:, k // 2] = torch.where(
            torch.rand(m, generator=rng) < 0.01, float("nan"), x[:, k // 2].double()
        ).to(dtype)
    return x


def random_offs(rng: torch.Generator, m: int, groups: int) -> Tensor:
    """int32 [groups]: ascending ends within m, with empty groups and usually some rows left over."""
    ends = torch.randint(0, m + 1, (groups,), generator=rng, dtype=torch.int32).sort().values
    if groups > 2:
        ends[1] = ends[0]
    return ends


def bits(x: Tensor) -> Tensor:
    """The bits of x as integers; every NaN of a float dtype counts as the same."""
    if x.dtype == torch.float8_e4m3fn:
        return x.view(torch.uint8)
    if x.dtype == torch.uint8:
        return x
    x = torch.where(x.isnan(), torch.nan, x)
    return x.view({2: torch.int16, 4: torch.int32}[x.element_size()])


def assert_same_bits(got: Tensor | tuple[Tensor, ...], wanted: Tensor | tuple[Tensor, ...]) -> None:
    """Shapes, dtypes and bits; says where the first difference is."""
    if isinstance(got, Tensor):
        got, wanted = (got,), (wanted,)
    assert len(got) == len(wanted)
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert a.dtype == b.dtype, f"result {i}: {a.dtype} instead of {b.dtype}"
        assert a.shape == b.shape, f"result {i}: {list(a.shape)} instead of {list(b.shape)}"
        different = (bits(a) != bits(b)).nonzero()
        if len(different):
            at = tuple(different[0].tolist())
            raise AssertionError(
                f"result {i} differs at {len(different)} of {a.numel()} places, first at {at}: "
                f"{a[at].float().item()!r} instead of {b[at].float().item()!r}"
            )
