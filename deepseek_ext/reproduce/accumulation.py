"""Section 3.3.2: the tensor core's short accumulator, and promotion to FP32 every 128 products.

The tensor core is modelled by `reference.gemm(accumulator="h800")`. Operands are drawn from N(0, 1) and
U(0, 1) and quantised with one scale each, since without promotion scales cannot vary along K.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..reference.formats import E4M3_MAX, TILE
from ..reference.gemm import gemm
from .claim import Claim, Finding, Settings
from .figures import COLOURS, GREY, Axes, percent

DRAWS: dict[str, Callable[..., Tensor]] = {"N(0, 1)": torch.randn, "U(0, 1)": torch.rand}
_LONG = 4096  # the paper's example
_PROMOTED_LIMIT = 0.002
_FACTOR = 5
_ROWS = 32


def errors(k: int, draw: Callable[..., Tensor], *, rows: int = _ROWS) -> tuple[float, float, float]:
    """max |D - D64| / max |D64| at depth k: never promoted, promoted every 128, and in FP32 throughout."""
    generator = torch.Generator().manual_seed(k)

    def quantised() -> tuple[Tensor, Tensor]:
        x = draw(rows, k, generator=generator)
        scale = x.abs().amax() / E4M3_MAX
        return (x / scale).to(torch.float8_e4m3fn), scale.expand(rows, k // TILE)

    operands = (*quantised(), *quantised())
    exact = gemm(*operands, out_dtype=torch.float64, accumulator="fp64")

    def error(accumulator: str, promote: int | None) -> float:
        result = gemm(*operands, out_dtype=torch.float32, accumulator=accumulator, promote=promote)
        return ((result - exact).abs().max() / exact.abs().max()).item()

    return error("h800", None), error("h800", TILE), error("fp32", TILE)


def measure(settings: Settings) -> Finding:
    depths = [512, _LONG] if settings.quick else [512, 1024, 2048, _LONG, 8192, 16384]
    rows = 8 if settings.quick else _ROWS
    found = {name: [errors(k, draw, rows=rows) for k in depths] for name, draw in DRAWS.items()}
    long = [values for row in found.values() for k, values in zip(depths, row, strict=True) if k >= _LONG]
    least = min(never / every for never, every, _ in long)
    worst = max(every for row in found.values() for _, every, _ in row)
    at = depths.index(_LONG)

    def draw(axes: Axes) -> None:
        for (name, row), colour in zip(found.items(), COLOURS, strict=False):
            for column, (label, line, marker) in enumerate(
                [("never promoted", "-", "o"), ("every 128", "--", "s")]
            ):
                values = [r[column] for r in row]
                axes.loglog(
                    depths, values, color=colour, linestyle=line, marker=marker, label=f"{name}, {label}"
                )
        axes.axhline(0.02, color=GREY, linewidth=0.8)
        axes.annotate(
            "paper: nearly 2 % at 4096", (depths[-1], 0.017), color=GREY, fontsize=7, ha="right", va="top"
        )
        axes.set_xscale("log", base=2)
        axes.set(
            xlabel="K", ylabel="largest error / largest result", title="Accumulation in 13 mantissa bits"
        )
        axes.set_xticks(depths, [str(k) for k in depths])
        percent(axes.yaxis)
        axes.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.45, -0.2))

    return Finding(
        shown=least > _FACTOR and worst < _PROMOTED_LIMIT,
        sentence=(
            f"at K = {_LONG} never promoting costs {found['N(0, 1)'][at][0]:.2%} for N(0, 1) and "
            f"{found['U(0, 1)'][at][0]:.2%} for U(0, 1), at least {least:.0f} times what promotion every "
            f"{TILE} leaves, which is at most {worst:.3%}"
        ),
        header=["inputs", "K", "never promoted", "every 128", "FP32"],
        rows=[
            [name, str(k), f"{never:.3%}", f"{every:.4%}", f"{fp32:.6%}"]
            for name, row in found.items()
            for k, (never, every, fp32) in zip(depths, row, strict=True)
        ],
        numbers={"depths": depths, "errors": found},
        draw=draw,
    )


CLAIM = Claim(
    name="accumulation",
    says="an FP8 product summed in the tensor core alone is nearly 2 % off at K = 4096; promoted, it is not",
    section="3.3.2",
    passes=(
        f"from K = {_LONG} on the error without promotion is over {_FACTOR} times that with it, and with it "
        f"stays below {_PROMOTED_LIMIT:.1%} at every K"
    ),
    measure=measure,
)
