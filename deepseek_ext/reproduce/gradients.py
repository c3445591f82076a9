"""Appendix B.2: activation gradients in 128x128 blocks against 1x128 tiles.

Tokens' gradients differ by orders of magnitude, so in a block of 128 tokens the small ones may lose what a
tile of their own would keep. Measured on the gradients that enter the FP8 products of a model in training.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor

from ..train.config import TrainConfig
from ..train.trainer import Trainer
from .claim import Claim, Finding, Settings
from .figures import COLOURS, Axes, percent
from .runs import Runs, Variant
from .simulate import Recipe, Tiling, simulate, through_e4m3
from .sizes import small

TILINGS: tuple[Tiling, ...] = ("1x128", "128x128", "tensor")
_FACTOR = 1.1
_SHARE = 0.9


def token_error(grad: Tensor, tiling: Tiling) -> float:
    """Mean over tokens, of those with a gradient, of the relative error of a token's gradient [M, N]."""
    grad = grad.float()
    size = grad.norm(dim=1)
    wrong = (through_e4m3(grad, tiling) - grad).norm(dim=1)
    return (wrong[size > 0] / size[size > 0]).mean().item() if bool((size > 0).any()) else 0.0


def by_layer(trainer: Trainer) -> dict[str, Any]:
    """Errors of one more batch's gradients, by layer; those of experts are averaged over experts."""
    seen: dict[str, list[list[float]]] = {}

    def watch(layer: str, grad: Tensor) -> None:
        if len(grad):
            seen.setdefault(layer, []).append([token_error(grad, tiling) for tiling in TILINGS])

    simulate(trainer.model, Recipe(), watch)
    with torch.enable_grad():
        trainer.model.loss(*trainer.data.batches.batch(trainer.config.sequences or 1)).total.backward()
    trainer.optimizer.zero_grad()
    return {
        "gradient_errors": {
            name: [statistics.fmean(column) for column in zip(*errors, strict=True)]
            for name, errors in sorted(seen.items())
        }
    }


def measure(settings: Settings) -> Finding:
    runs = Runs(small(settings, TrainConfig(precision="fp8", mtp_depth=0)))
    variant = Variant(name="gradients", at_end=by_layer)
    errors: dict[str, list[float]] = runs.train(variant, 0)[-1]["gradient_errors"]
    ratios = {name: block / tile for name, (tile, block, _) in errors.items()}
    worse = sum(ratio > _FACTOR for ratio in ratios.values())
    worst = max(ratios, key=lambda name: ratios[name])

    def draw(axes: Axes) -> None:
        names = [name.removeprefix("model.layers.") for name in errors]
        for n, (label, colour) in enumerate(zip(("1×128", "128×128", "per tensor"), COLOURS, strict=False)):
            axes.plot([e[n] for e in errors.values()], range(len(names)), "osD"[n], color=colour, label=label)
        axes.set_yticks(range(len(names)), names, fontsize=5)
        axes.invert_yaxis()
        axes.set(xlabel="relative error of a token's gradient", title="Gradients in E4M3, by layer")
        percent(axes.xaxis)
        axes.legend(loc="upper center", bbox_to_anchor=(0.2, -0.2), ncols=3)

    return Finding(
        shown=worse >= _SHARE * len(ratios),
        sentence=(
            f"a token's gradient loses over {_FACTOR} times as much in 128x128 blocks as in 1x128 tiles in "
            f"{worse} of {len(ratios)} layers, most in {worst} ({ratios[worst]:.2f} times); the paper's "
            "model diverged, which needs another size"
        ),
        header=["mean error of a token's gradient", *TILINGS, "128x128 / 1x128"],
        rows=[
            [name, *(f"{value:.2%}" for value in values), f"{ratios[name]:.2f}"]
            for name, values in errors.items()
        ],
        numbers={"errors": errors},
        draw=draw,
    )


CLAIM = Claim(
    name="gradients",
    says="activation gradients need 1x128 tiles: quantised in 128x128 blocks they lose small tokens' values",
    section="appendix B.2",
    passes=f"the error of a token's gradient is over {_FACTOR} times as large in {_SHARE:.0%} of the layers",
    measure=measure,
)
