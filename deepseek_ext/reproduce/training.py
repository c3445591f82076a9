"""Claims that take training runs: FP8's loss, balance of the experts, multi-token prediction, BF16 moments.

A difference between variants is estimated over seeds, paired: both see the same data from the same weights.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch

from ..train.config import TrainConfig
from ..train.trainer import Trainer
from . import compare
from .claim import Claim, Finding, Settings
from .figures import COLOURS, GREY, Axes, percent
from .runs import Row, Runs, Variant, losses_of
from .sizes import seeds, small
from .statistics import LIMIT, Estimate, compare_curves, ema, judged, second_half, verdict


def _held_out(by_seed: list[list[Row]], base: list[list[Row]]) -> Estimate:
    """Relative difference of the held-out loss, over seeds."""
    pairs = [(a[-1]["held_out_loss"], b[-1]["held_out_loss"]) for a, b in zip(by_seed, base, strict=True)]
    return Estimate.of([(a - b) / b for a, b in pairs])


def measure_precision(settings: Settings) -> Finding:
    size: dict[str, Any] = {}
    if settings.quick:
        size = {"tokens": 1024, "seq_len": 32, "hidden_size": 64, "experts": 8, "expert_size": 64}
        size |= {"vocab_size": 384, "seeds": len(seeds(settings))}
    options = compare.CompareOptions(
        run_dir=settings.out / "runs",
        data=settings.data,
        threads=settings.threads,
        **size,
    )
    result = compare.measure(options)
    return Finding(
        shown=result.verdict == "pass",
        sentence=compare.sentence(result, options),
        header=compare.HEADER,
        rows=compare.rows(result),
        numbers=compare.numbers(result),
        draw=partial(compare.draw, result),
        panels=compare.PANELS,
    )


_WAYS = (
    Variant(name="no balance", changes={"bias_update_speed": 0.0, "balance_loss": "none"}),
    Variant(
        name="auxiliary loss",
        changes={"bias_update_speed": 0.0, "balance_loss": "batch", "balance_alpha": 0.01},
    ),
    Variant(name="aux-loss-free"),
)


def load_by_expert(trainer: Trainer) -> Row:
    """Share of the mean load by expert, sorted, in the least balanced layer, on held-out text."""
    trainer.model.train()
    trainer.model.update_router_bias(0.0)  # restarts the count
    trainer.model.loss(*(part[:32] for part in trainer.data.validation))
    load = trainer.model.router_load().double()
    trainer.model.update_router_bias(0.0)
    load = load / load.mean(1, keepdim=True)
    worst = load[load.amax(1).argmax()]
    return {"held_out_load": worst.sort(descending=True).values.tolist()}


def measure_balance(settings: Settings) -> Finding:
    config = small(settings, TrainConfig(mtp_depth=0))
    runs = Runs(config)
    found = {
        way.name: [
            runs.train(Variant(name=way.name, changes=way.changes, at_end=load_by_expert), seed)
            for seed in seeds(settings)
        ]
        for way in _WAYS
    }
    vio = {
        name: Estimate.of([second_half([row["max_vio"] for row in rows]) for rows in by_seed])
        for name, by_seed in found.items()
    }
    held_out = {name: _held_out(by_seed, found["auxiliary loss"]) for name, by_seed in found.items()}
    none, _, free = (vio[way.name] for way in _WAYS)
    better = held_out["aux-loss-free"]
    busiest = {name: by_seed[0][-1]["held_out_load"] for name, by_seed in found.items()}
    idle = {name: sum(load < 0.1 for load in loads) for name, loads in busiest.items()}

    def draw(over_time: Axes, by_expert: Axes) -> None:
        for (name, by_seed), colour in zip(found.items(), (GREY, *COLOURS), strict=False):
            curves = [ema([row["max_vio"] for row in rows]) for rows in by_seed]
            mean = [statistics.fmean(values) for values in zip(*curves, strict=True)]
            over_time.plot(range(1, len(mean) + 1), mean, color=colour, label=name)
            load = busiest[name]
            by_expert.step(range(1, len(load) + 1), load, where="mid", color=colour, label=name)
        over_time.set(xlabel="step", ylabel="MaxVio, worst layer", title="EMA 0.9, mean over seeds")
        by_expert.axhline(1, color="black", linewidth=0.6)
        by_expert.set(
            xlabel="expert, busiest first", ylabel="load / mean load", title="Held-out text, seed 0"
        )
        over_time.legend()
        by_expert.legend()

    return Finding(
        shown=2 * free.mean < none.mean and better.mean + 2 * better.standard_error < 0,
        sentence=(
            f"MaxVio {none.mean:.2f} without balancing ({idle['no balance']} of {len(busiest['no balance'])} "
            f"experts of the worst layer nearly idle), {vio['auxiliary loss'].mean:.2f} with an auxiliary "
            f"loss, {free.mean:.2f} aux-loss-free, whose held-out loss is {better} against the "
            "auxiliary loss"
        ),
        header=[
            "balance",
            "MaxVio, 2nd half",
            "std error",
            "held-out loss",
            "against auxiliary",
            "nearly idle",
        ],
        rows=[
            [
                name,
                f"{vio[name].mean:.3f}",
                f"{vio[name].standard_error:.3f}",
                f"{statistics.fmean(rows[-1]['held_out_loss'] for rows in by_seed):.4f}",
                str(held_out[name]),
                str(idle[name]),
            ]
            for name, by_seed in found.items()
        ],
        numbers={
            "max_vio": {
                name: [[row["max_vio"] for row in rows] for rows in by_seed]
                for name, by_seed in found.items()
            },
            "held_out_loss": {
                name: [rows[-1]["held_out_loss"] for rows in by_seed] for name, by_seed in found.items()
            },
            "held_out_load": busiest,
        },
        draw=draw,
        panels=2,
    )


def measure_mtp(settings: Settings) -> Finding:
    runs = Runs(small(settings, TrainConfig()))
    found = {
        depth: [
            runs.train(Variant(name=f"mtp depth {depth}", changes={"mtp_depth": depth}), seed)
            for seed in seeds(settings)
        ]
        for depth in (0, 1, 2)
    }
    gain = {depth: _held_out(found[depth], found[0]) for depth in (1, 2)}
    accepted = {
        depth: [
            statistics.fmean(values)
            for values in zip(*(rows[-1]["held_out_acceptance"] for rows in found[depth]), strict=True)
        ]
        for depth in (1, 2)
    }

    def draw(loss: Axes, acceptance: Axes) -> None:
        for depth, colour in zip((1, 2), COLOURS, strict=False):
            curves = compare_curves([*map(losses_of, found[depth])], [*map(losses_of, found[0])], 0).smoothed
            mean = [statistics.fmean(values) for values in zip(*curves, strict=True)]
            start = len(mean) // 10
            for curve in curves:
                loss.plot(range(start, len(mean)), curve[start:], color=colour, linewidth=0.5, alpha=0.5)
            loss.plot(range(start, len(mean)), mean[start:], color=colour, label=f"depth {depth}")
        loss.axhline(0, color="black", linewidth=0.6)
        loss.set(xlabel="step", ylabel="main loss, relative to none", title="EMA 0.9, equal tokens")
        percent(loss.yaxis)
        loss.legend()
        places = ["depth 1\nof 1", "depth 1\nof 2", "depth 2\nof 2"]
        bars = acceptance.bar(
            places, [*accepted[1], *accepted[2]], 0.6, color=[COLOURS[0], *[COLOURS[1]] * 2]
        )
        acceptance.bar_label(bars, [f"{value:.0%}" for value in (*accepted[1], *accepted[2])], fontsize=7)
        acceptance.grid(axis="x", visible=False)
        acceptance.set(ylabel="same choice as the main model", title="Acceptance, held-out text")
        percent(acceptance.yaxis)

    return Finding(
        shown=gain[1].mean + 2 * gain[1].standard_error < 0,
        sentence=(
            f"at equal tokens the main model's held-out loss with MTP depth 1 is {gain[1]} against "
            f"none; the module's choice is the main model's for {accepted[1][0]:.0%} of tokens (the paper's "
            "finished model: 85 to 90 %)"
        ),
        header=["MTP depth", "held-out main loss", "against none", "acceptance by depth"],
        rows=[
            [
                str(depth),
                f"{statistics.fmean(rows[-1]['held_out_loss'] for rows in by_seed):.4f}",
                str(gain[depth]) if depth else "",
                ", ".join(f"{value:.1%}" for value in accepted.get(depth, [])),
            ]
            for depth, by_seed in found.items()
        ],
        numbers={
            "held_out_loss": {
                d: [rows[-1]["held_out_loss"] for rows in by_seed] for d, by_seed in found.items()
            },
            "acceptance": accepted,
        },
        draw=draw,
        panels=2,
    )


def _fp32_moments(trainer: Trainer) -> None:
    trainer.optimizer.moment_dtype = torch.float32
    for state in trainer.optimizer.state.values():
        state.update({name: moment.float() for name, moment in state.items()})


def measure_moments(settings: Settings) -> Finding:
    config = small(settings, TrainConfig(precision="bf16", mtp_depth=0))
    runs = Runs(config)
    variants = (
        Variant(name="BF16 moments"),
        Variant(name="FP32 moments", prepare=_fp32_moments),
        Variant(name=compare.FLOOR, at_start=compare.move_one_weight),
    )
    curves = {v.name: [losses_of(runs.train(v, seed)) for seed in seeds(settings)] for v in variants}
    steps = config.schedules().lr.warmup // (config.seq_len * (config.sequences or 1))
    rounded = compare_curves(curves["BF16 moments"], curves["FP32 moments"], steps)
    floor = compare_curves(curves[compare.FLOOR], curves["BF16 moments"], steps)
    found = judged(rounded, floor)

    def draw(axes: Axes) -> None:
        for label, c, colour in (("BF16 − FP32 moments", rounded, COLOURS[0]), (compare.FLOOR, floor, GREY)):
            compare.draw_errors(axes, c, steps, label, colour)
        compare.draw_limits(axes)
        axes.set(title="EMA 0.9 of the loss; dashed: ±0.25 %")

    return Finding(
        shown=verdict(found) == "pass",
        sentence=(
            f"BF16 moments change the loss by {found}; moving one weight by one ulp "
            f"changes it by {floor.second_half}"
        ),
        header=["relative loss error, 2nd half", "mean", "std error", "largest of EMA-0.9"],
        rows=[
            [
                name,
                f"{100 * c.second_half.mean:+.4f} %",
                f"{100 * c.second_half.standard_error:.4f} %",
                f"{100 * c.smoothed_max:.3f} %",
            ]
            for name, c in (("BF16 - FP32 moments", rounded), (f"{compare.FLOOR} (floor)", floor))
        ],
        numbers={"losses": curves},
        draw=draw,
    )


CLAIMS = (
    Claim(
        name="precision",
        says="FP8 training's relative loss error against BF16 stays below 0.25 %",
        section="3.3",
        passes=f"|mean| + 2 standard errors of the second half below {LIMIT:.2%}",
        measure=measure_precision,
    ),
    Claim(
        name="balance",
        says="a bias on the router's scores balances the experts, at a better loss than an auxiliary loss",
        section="2.1.2 and 4.5.2",
        passes=(
            "MaxVio at most half of that without balancing, and held-out loss below that with an auxiliary "
            "loss by two standard errors"
        ),
        measure=measure_balance,
    ),
    Claim(
        name="mtp",
        says="training with multi-token prediction improves the main model at equal tokens",
        section="4.5.1",
        passes="held-out loss of the main model below that without MTP by two standard errors",
        measure=measure_mtp,
    ),
    Claim(
        name="moments",
        says="AdamW's moments in BF16 instead of FP32 cause no observable degradation",
        section="3.3.3",
        passes=f"|mean| + 2 standard errors of the relative loss error below {LIMIT:.2%}",
        measure=measure_moments,
    ),
)
