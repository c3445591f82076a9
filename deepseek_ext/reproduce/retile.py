"""Section 3.3.3: tiles cut anew for the backward lose nothing more where all scales are powers of two.

The forward quantises 1x128; wgrad needs the same values in 128x1. Going from codes to codes rounds a second
time, unless both scales are powers of two: then the codes only move their exponent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from .claim import Claim, Finding, Settings
from .figures import COLOURS, Axes, percent

# Whether the scales are powers of two: of the forward's tiles, and of those cut anew.
WAYS = {
    "FP32, then FP32": (False, False),
    "FP32, then power of two": (False, True),
    "power of two, then FP32": (True, False),
    "both powers of two": (True, True),
}


def spread_out(rows: int, k: int, spread: float) -> Tensor:
    """N(0, 1) [rows, k] whose rows differ by factors of about 2^spread."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(rows, k, generator=generator)
        * torch.randn(rows, 1, generator=generator).mul(spread).exp2()
    )


def errors(x: Tensor, before: bool, after: bool) -> tuple[float, float]:
    """Relative errors of x [M, K] retiled: that of the second rounding alone, and of both against x."""
    codes, scales = ops.quantize_tiles(x, power_of_2=before)
    first = ops.dequantize_tiles(codes, scales)
    codes_t, scales_t = ops.retile(codes, scales, power_of_2=after)
    second = ops.dequantize_tiles(codes_t, scales_t)[:, : x.shape[0]].t()
    return ((second - first).norm() / first.norm()).item(), ((second - x).norm() / x.norm()).item()


def measure(settings: Settings) -> Finding:
    rows, k = (256, 256) if settings.quick else (4096, 2048)
    x = spread_out(rows, k, 2.0)
    found = {name: errors(x, *way) for name, way in WAYS.items()}
    exact, both = found["both powers of two"], found["FP32, then FP32"]

    def draw(axes: Axes) -> None:
        names = list(found)
        for n, (label, colour) in enumerate(zip(("second rounding", "in all"), COLOURS, strict=False)):
            places = [i + 0.4 * n - 0.2 for i in range(len(names))]
            bars = axes.barh(places, [found[name][n] for name in names], 0.38, color=colour, label=label)
            axes.bar_label(bars, [f"{found[name][n]:.2%}" for name in names], padding=2, fontsize=7)
        axes.set_yticks(range(len(names)), [f"{name}" for name in names])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.25 * max(total for _, total in found.values()))
        axes.grid(axis="y", visible=False)
        axes.set(xlabel="relative error", title="1×128 tiles cut anew as 128×1")
        percent(axes.xaxis)
        axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.2), ncols=2)

    return Finding(
        shown=exact[0] < 0.01 * both[0] and exact[1] < both[1],
        sentence=(
            f"the second rounding costs {both[0]:.3%} with FP32 scales and {exact[0]:.3%} with powers of "
            f"two; in all {both[1]:.3%} against {exact[1]:.3%}"
        ),
        header=["scales", "second rounding", "in all"],
        rows=[[name, f"{second:.3%}", f"{total:.3%}"] for name, (second, total) in found.items()],
        numbers={"errors": found},
        draw=draw,
    )


CLAIM = Claim(
    name="retile",
    says="power-of-two scales avoid an additional quantisation error where the backward cuts tiles anew",
    section="3.3.3",
    passes="the second rounding costs less than a hundredth of that of FP32 scales, and the total is smaller",
    measure=measure,
)
