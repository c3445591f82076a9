"""Results on the disk: tables, JSON, and figures as a paper prints them where matplotlib is installed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

Axes = Any  # of matplotlib, which is optional
Draw = Callable[..., None]
"""Draws into as many axes as the figure has panels."""

# Okabe and Ito's colours, which the colour-blind tell apart, in the order of use.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#8C8C8C"
STYLE: Any = {
    "font.family": "serif",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "mathtext.fontset": "dejavuserif",
}


def save_figure(path: Path, draw: Draw, *, panels: int = 1) -> Path | None:
    """Writes a PNG of `panels` axes side by side; None, and nothing written, without matplotlib."""
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(3.6 * panels + 0.2, 2.7), dpi=220, layout="constrained")
        FigureCanvasAgg(figure)
        draw(*(figure.add_subplot(1, panels, n + 1) for n in range(panels)))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    return path


def percent(axis: Any) -> None:
    """Labels an axis of shares in percent."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns of text, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: list[str]) -> str:
        first, *rest = (
            c.ljust(w) if n == 0 else c.rjust(w) for n, (c, w) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *map(line, rows)])


def write_result(folder: Path, text: str, numbers: dict[str, Any], draw: Draw, *, panels: int = 1) -> None:
    """Prints `text`, and writes result.txt, result.json and figure.png into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    print(f"\n{text}")
    (folder / "result.txt").write_text(text + "\n")
    (folder / "result.json").write_text(json.dumps(_without_nan(numbers), indent=1) + "\n")
    figure = save_figure(folder / "figure.png", draw, panels=panels)
    missing = '; no figure, since matplotlib is missing: install "deepseek-ext[plot]"'
    print(
        f"written to {folder}: result.txt, result.json" + (", figure.png" if figure else missing), flush=True
    )


def _without_nan(value: Any) -> Any:
    """JSON has neither NaN nor infinity: they become null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
