"""Curves of one or several runs in one picture: `deepseek-ext plot RUN...`.

matplotlib is imported when something is drawn, and draws into a file without a display.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise, zip_longest
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import tyro

from .reproduce.figures import COLOURS, STYLE
from .train.metrics import read_metrics

_POINTS = 2000  # of a curve: more than a picture has pixels
_STYLE: Any = {"axes.titlelocation": "left", "svg.fonttype": "none"}
_FORMATS = (".png", ".svg", ".pdf")
_OPERANDS = ("activation", "weight", "gradient")


@dataclass(kw_only=True, slots=True)
class PlotOptions:
    """Draws loss, bits per byte, balance and expert load of one run, or of several for comparison."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run directories."""
    out: Path | None = None
    """The picture, .png, .svg or .pdf; default: plot.png in the first run directory."""

    def __post_init__(self) -> None:
        if self.out is not None and self.out.suffix.lower() not in _FORMATS:
            raise ValueError(f"--out {self.out} must end in {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}")


@dataclass(frozen=True, slots=True)
class Run:
    """What the files of a run directory say."""

    name: str
    rows: list[dict[str, Any]]
    telemetry: list[dict[str, Any]]

    def curve(self, field: str) -> tuple[list[float], list[float]]:
        """Tokens and values of the steps that have the field."""
        found = [(row["tokens"], row[field]) for row in self.rows if isinstance(row.get(field), (int, float))]
        return [float(x) for x, _ in found], [float(y) for _, y in found]

    def loads(self) -> dict[str, list[tuple[int, list[int]]]]:
        """By router: tokens and the load of each expert."""
        found: dict[str, list[tuple[int, list[int]]]] = {}
        for row in self.telemetry:
            if row.get("load"):
                found.setdefault(row["layer"], []).append((row["tokens"], row["load"]))
        complete = min(map(len, found.values()), default=0)  # a crash may have cut off the last routers
        return {layer: rows[:complete] for layer, rows in found.items()} if complete else {}


def plot(options: PlotOptions) -> Path:
    """Draws the picture and returns its path; raises ValueError for what the user can put right."""
    if not options.runs:
        raise ValueError("name at least one run directory")
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(
            "drawing needs the package matplotlib, which is not installed; "
            "run: pip install 'deepseek-ext[plot]'"
        ) from error
    runs = [_read(path, name) for path, name in zip(options.runs, _names(options.runs), strict=True)]
    out = options.out or options.runs[0] / "plot.png"
    with matplotlib.rc_context({**STYLE, **_STYLE}):
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        _draw(figure, runs)
        try:
            figure.savefig(out, dpi=200)
        except OSError as error:
            raise ValueError(f"{out} cannot be written ({error.strerror}); choose another --out") from error
    return out


def _read(path: Path, name: str) -> Run:
    metrics = path / "metrics.jsonl"
    if not metrics.is_file():
        raise ValueError(f"{path} has no metrics.jsonl; name the run directory of a training run")
    rows = [row for row in read_metrics(metrics) if isinstance(row.get("tokens"), int)]
    if not rows:
        raise ValueError(f"{metrics} holds no step that can be read; is the run past its first step?")
    lines = metrics.read_bytes().count(b"\n")
    if len(rows) < lines:
        print(f"{metrics}: line {len(rows) + 1} cannot be read; drawn up to there", file=sys.stderr)
    telemetry = path / "telemetry.jsonl"
    return Run(name, rows, read_metrics(telemetry) if telemetry.is_file() else [])


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' names, or the paths where names are the same."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _draw(figure: Any, runs: list[Run]) -> None:
    maps = math.ceil(len(runs) / 2)  # rows of them
    figure.set_size_inches(10, 4.6 + 2.8 * maps)
    above, below = figure.subfigures(2, 1, height_ratios=[4.6, 2.8 * maps])
    panels = above.subplots(2, 3)
    for run, colour in zip(runs, cycle(COLOURS), strict=False):
        _curves(panels, run, colour)
    for axes in panels.flat:
        _tokens(axes)
    if len(runs) == 1:
        heat, lost = below.subplots(1, 2, width_ratios=[2, 1])
        _heat_map(below, heat, runs[0], "", runs)
        _underflow(lost, runs[0])
        return
    panels[0][0].legend()
    places = below.subplots(maps, 2, squeeze=False).flat
    for axes, run in zip_longest(places, runs):
        if run is None:
            axes.set_axis_off()
        else:
            _heat_map(below, axes, run, f"{run.name}: ", runs)


def _curves(panels: Any, run: Run, colour: str) -> None:
    (loss, bits, rate), (vio, norm, speed) = panels
    _line(loss, run, "loss", colour)
    loss.set_title("Training loss (nats per token)")
    _line(bits, run, "bits_per_byte", colour, width=0.8)
    bits.plot(*run.curve("val_bits_per_byte"), "o-", color=colour, markersize=3, linewidth=1.4)
    bits.set_title("Bits per byte: training (thin), validation (dots)")
    rate.plot(*_thin(*run.curve("lr")), color=colour, linewidth=1.2)
    rate.set_title("Learning rate")
    rate.yaxis.set_major_formatter("{x:g}")
    _line(vio, run, "max_vio", colour)
    vio.set_title("MaxVio, worst layer")
    _line(norm, run, "grad_norm", colour)
    norm.set_title("Gradient norm before clipping")
    tokens, rates = _thin(*run.curve("tokens_per_second"))
    speed.plot(tokens, _medians(rates), color=colour, linewidth=1.2)
    speed.set_title("Tokens per second")
    for axes in (rate, vio, norm, speed):
        axes.set_ylim(bottom=0)


def _line(axes: Any, run: Run, field: str, colour: str, *, width: float = 1.2) -> None:
    """A smooth curve, with the steps themselves pale behind it."""
    tokens, values = run.curve(field)
    axes.plot(*_thin(tokens, values), color=colour, linewidth=0.5, alpha=0.25)
    axes.plot(*_thin(tokens, _smooth(values)), color=colour, linewidth=width, label=run.name)


def _smooth(values: Sequence[float]) -> list[float]:
    """An exponential mean over about a fiftieth of the curve, unbiased at its start."""
    decay = 1 - 1 / max(1.0, len(values) / 50)
    mean = weight = 0.0
    smooth = []
    for value in values:
        mean, weight = decay * mean + (1 - decay) * value, decay * weight + (1 - decay)
        smooth.append(mean / weight)
    return smooth


def _medians(values: Sequence[float]) -> list[float]:
    """Running medians, which steps that something else slowed down do not move."""
    reach = max(2, len(values) // 50)
    return [median(values[max(0, n - reach) : n + reach + 1]) for n in range(len(values))]


def _thin(*columns: Any) -> list[Any]:
    """Every n-th point, so that there are no more than a picture can show; the last one stays."""
    stride = max(1, math.ceil(len(columns[0]) / _POINTS))
    return [column[(len(column) - 1) % stride :: stride] for column in columns]


def _heat_map(figure: Any, axes: Any, run: Run, title: str, runs: list[Run]) -> None:
    """Load of each expert over the mean of its router; MaxVio of each router where loads were not written."""
    import numpy as np

    loads = run.loads()
    if loads:
        tokens = [at for at, _ in next(iter(loads.values()))]
        parts = [np.array([load for _, load in rows], dtype=float) for rows in loads.values()]
        shares = [part / np.maximum(part.mean(1, keepdims=True), 1e-9) for part in parts]
        values = np.log2(np.clip(np.concatenate(shares, 1), 0.25, 4))
        names, ends = [_short(name) for name in loads], np.cumsum([part.shape[1] for part in parts])
        axes.set_title(f"{title}Load of each expert over the mean of its layer")
        colours: Any = {"cmap": "RdBu_r", "vmin": -2, "vmax": 2}
    else:
        rows = [row for row in run.rows if row.get("max_vio_by_router")]
        if not rows:
            axes.set_axis_off()
            return
        tokens = [row["tokens"] for row in rows]
        values = np.array([row["max_vio_by_router"] for row in rows], dtype=float)
        names, ends = [f"router {n + 1}" for n in range(values.shape[1])], np.arange(values.shape[1]) + 1
        axes.set_title(f"{title}MaxVio of each router (--telemetry N shows experts)")
        worst = max(max(other.curve("max_vio")[1], default=0.0) for other in runs)
        colours = {"cmap": "viridis", "vmin": 0, "vmax": worst}
    at, shown = _thin(tokens, values)
    edges = [0.0, *((a + b) / 2 for a, b in pairwise(at)), at[-1]]
    mesh = axes.pcolormesh(edges, np.arange(shown.shape[1] + 1), shown.T, rasterized=True, **colours)
    axes.grid(False)
    axes.hlines(ends[:-1], 0, at[-1], color="0.3", linewidth=0.8)
    axes.set_yticks([(a + b) / 2 for a, b in pairwise([0, *ends])], names)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    _tokens(axes)
    axes.set_xlim(right=max(other.rows[-1]["tokens"] for other in runs))
    bar = figure.colorbar(mesh, ax=axes, pad=0.01, aspect=30)
    bar.outline.set_visible(False)
    if loads:
        bar.set_ticks([-2, -1, 0, 1, 2], labels=["≤ ¼", "½", "1", "2", "≥ 4"])


def _underflow(axes: Any, run: Run) -> None:
    """Share of elements that FP8 rounds to zero: mean over layers and the worst of them."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in run.telemetry:
        if row.get("operand") in _OPERANDS:
            found.setdefault(row["operand"], {}).setdefault(row["tokens"], []).append(row["underflow"])
    if not found:
        axes.set_axis_off()
        return
    for operand, colour in zip(_OPERANDS, COLOURS, strict=False):
        if operand not in found:  # a crash may have cut off the rest
            continue
        tokens, shares = _thin(list(found[operand]), list(found[operand].values()))
        axes.plot(tokens, [sum(s) / len(s) for s in shares], color=colour, linewidth=1.2, label=operand)
        axes.plot(tokens, [max(s) for s in shares], ":", color=colour, linewidth=0.9)
    axes.set_yscale("symlog", linthresh=1e-5)
    axes.set_ylim(0, 10 * max(1e-4, *(max(s) for by in found.values() for s in by.values())))
    axes.set_title("FP8 underflow (dotted: worst layer)")
    axes.legend(loc="upper center", ncols=3, columnspacing=1, handlelength=1.5)
    _tokens(axes)


def _short(router: str) -> str:
    """model.layers.3.mlp.gate as layer 3."""
    numbers = [part for part in router.split(".") if part.isdigit()]
    return f"layer {numbers[0]}" if numbers else router


def _tokens(axes: Any) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_xlabel("tokens")
    axes.set_xlim(left=0)
