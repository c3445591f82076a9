"""Section 3.3.2: an outlier takes the precision of everything that shares its scale.

Tokens of N(0, 1) activations; in one token of a hundred one element is an outlier. Counted is the error of
the other elements alone: E4M3's own exponent absorbs outliers up to some 10^4, beyond that values near one
fall into its subnormals, and then to zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .claim import Claim, Finding, Settings
from .figures import COLOURS, Axes, percent
from .simulate import Tiling, through_e4m3

TILINGS: tuple[Tiling, ...] = ("tensor", "128x128", "1x128")
_EVERY = 100  # tokens to an outlier
_DECIDES = 1e6


def error(x: Tensor, ordinary: Tensor, tiling: Tiling) -> float:
    """Relative error of the elements that `ordinary` (bool) marks, in x [M, K] through E4M3."""
    wrong = (through_e4m3(x, tiling) - x)[ordinary]
    return (wrong.norm() / x[ordinary].norm()).item()


def with_outliers(rows: int, k: int, magnitude: float) -> tuple[Tensor, Tensor]:
    """N(0, 1) [rows, k] with outliers of about `magnitude`, and which elements are none."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, k, generator=generator)
    at = torch.arange(0, rows, _EVERY)
    column = torch.randint(k, (len(at),), generator=generator)
    ordinary = torch.ones(rows, k, dtype=torch.bool)
    ordinary[at, column] = False
    x[at, column] = magnitude * (1 + torch.rand(len(at), generator=generator))
    return x, ordinary


def measure(settings: Settings) -> Finding:
    rows, k = (256, 512) if settings.quick else (2048, 2048)
    magnitudes = [10.0**e for e in range(1, 8)]
    found: dict[str, list[float]] = {tiling: [] for tiling in TILINGS}
    for magnitude in magnitudes:
        x, ordinary = with_outliers(rows, k, magnitude)
        for tiling in TILINGS:
            found[tiling].append(error(x, ordinary, tiling))
    tensor, block, tile = (found[tiling][magnitudes.index(_DECIDES)] for tiling in TILINGS)

    def draw(axes: Axes) -> None:
        labels = {"tensor": "per tensor", "128x128": "128×128", "1x128": "1×128"}
        for tiling, colour in zip(TILINGS, COLOURS, strict=False):
            axes.loglog(magnitudes, found[tiling], "o-", color=colour, label=labels[tiling])
        axes.set(
            xlabel="outlier / standard deviation",
            ylabel="relative error of the others",
            title=f"One token in {_EVERY} has an outlier",
        )
        percent(axes.yaxis)
        axes.legend()

    return Finding(
        shown=10 * tile < tensor and 2 * tile < block <= tensor,
        sentence=(
            f"with outliers of {_DECIDES:g} standard deviations the other elements lose {tensor:.1%} per "
            f"tensor, {block:.1%} in 128x128 blocks, {tile:.1%} in 1x128 tiles; up to 1000 the three differ "
            f"little ({found['tensor'][2]:.2%}, {found['128x128'][2]:.2%}, {found['1x128'][2]:.2%})"
        ),
        header=["outlier", *TILINGS],
        rows=[
            [f"{m:g}", *(f"{found[tiling][n]:.2%}" for tiling in TILINGS)] for n, m in enumerate(magnitudes)
        ],
        numbers={"magnitudes": magnitudes, "errors": found},
        draw=draw,
    )


CLAIM = Claim(
    name="outliers",
    says="fine-grained scales keep an activation's outliers from costing the other elements their precision",
    section="3.3.2",
    passes=(
        f"at outliers of {_DECIDES:g} standard deviations, 1x128 errs less than a tenth of per tensor and "
        "half of 128x128"
    ),
    measure=measure,
)
