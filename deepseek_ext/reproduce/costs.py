"""What each operand's quantisation costs the gradient, layer by layer, of a model as training left it.

Loss curves part by chance; the gradient of one batch at given weights does not. Its error is taken against
the same model with no operand in FP8, and contains what a token costs that a rounding sends to another
expert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..train.trainer import Trainer
from .figures import COLOURS, GREY, Axes, percent
from .runs import Row
from .simulate import Recipe, simulate

RECIPES: Mapping[str, Recipe] = {
    "activation alone in 1x128": Recipe(weight=None, gradient=None),
    "weight alone in 128x128": Recipe(activation=None, gradient=None),
    "gradient alone in 1x128": Recipe(activation=None, weight=None),
    "gradient alone in 128x128": Recipe(activation=None, weight=None, gradient="128x128"),
    "all three, the paper's tiles": Recipe(),
    "all three, gradient in 128x128": Recipe(gradient="128x128"),
    "all three, per tensor": Recipe(activation="tensor", weight="tensor", gradient="tensor"),
}
SHIPPED = "as shipped, with its caches"
WHOLE = "whole model"
_NONE = Recipe(activation=None, weight=None, gradient=None)
_WINDOWS = 4


def gradient_costs(trainer: Trainer) -> Row:
    """Relative error of the gradient, by recipe and then by layer; leaves the model's products simulated."""
    model = trainer.model
    tokens, targets = (part[:_WINDOWS] for part in trainer.data.validation)

    def gradients() -> dict[str, Tensor]:
        trainer.optimizer.zero_grad()
        with torch.enable_grad():
            model.loss(tokens, targets).total.backward()
        return {
            name.removesuffix(".weight"): p.grad.clone()
            for name, p in model.named_parameters()
            if p.grad is not None
        }

    found = {SHIPPED: gradients()}
    for name, recipe in {**RECIPES, "": _NONE}.items():
        simulate(model, recipe)
        found[name] = gradients()
    trainer.optimizer.zero_grad()
    exact = found.pop("")
    return {"gradient_costs": {name: _errors(grads, exact) for name, grads in found.items()}}


def _errors(grads: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    size = {name: grad.norm().item() for name, grad in exact.items()}
    wrong = {name: (grads[name] - grad).norm().item() for name, grad in exact.items()}
    whole = sum(e * e for e in wrong.values()) / sum(s * s for s in size.values())
    return {WHOLE: whole**0.5} | {name: wrong[name] / size[name] if size[name] else 0.0 for name in exact}


def mean_costs(last_rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """The mean over seeds, from each seed's last row; nothing where every run diverged."""
    all_costs = [row["gradient_costs"] for row in last_rows]
    if not all_costs:
        return {}
    return {
        name: {layer: sum(c[name][layer] for c in all_costs) / len(all_costs) for layer in layers}
        for name, layers in all_costs[0].items()
    }


HEADER = ["error of the gradient", "whole model", "worst layer", ""]


def rows(costs: dict[str, dict[str, float]]) -> list[list[str]]:
    """A line a recipe."""
    out = []
    for name, layers in costs.items():
        worst = max((layer for layer in layers if layer != WHOLE), key=lambda layer: layers[layer])
        out.append([name, f"{layers[WHOLE]:.2%}", f"{layers[worst]:.2%}", worst.removeprefix("model.")])
    return out


def draw(costs: dict[str, dict[str, float]], axes: Axes) -> None:
    """A bar a recipe, of the whole model's gradient."""
    if not costs:
        return
    whole = [layers[WHOLE] for layers in costs.values()]
    colours = [GREY if name == SHIPPED else COLOURS[0] for name in costs]
    bars = axes.barh(range(len(whole)), whole, 0.65, color=colours)
    axes.bar_label(bars, [f"{value:.1%}" for value in whole], padding=2, fontsize=7)
    axes.set_yticks(range(len(whole)), [name.replace(", ", ",\n") for name in costs], fontsize=6.5)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.2 * max(whole))
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="relative error of the gradient", title="What is in FP8, after training")
    percent(axes.xaxis)
