"""compare-precision: its statistics on known curves, and a comparison of tiny runs from end to end."""

from __future__ import annotations

import json
import math
import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek_ext import cli, ops
from deepseek_ext.model import DeepseekV3
from deepseek_ext.nn.derived import Derived
from deepseek_ext.nn.linear import product
from deepseek_ext.reproduce.compare import FLOOR, CompareOptions, compare, measure, move_one_weight
from deepseek_ext.reproduce.costs import RECIPES, SHIPPED, WHOLE
from deepseek_ext.reproduce.runs import Interrupted, Runs, Variant
from deepseek_ext.reproduce.simulate import Recipe, SimulatedProduct, simulate, through_e4m3
from deepseek_ext.reproduce.statistics import Estimate, Verdict, compare_curves, ema, judged, verdict
from deepseek_ext.train.data import prepare_data
from deepseek_ext.train.metrics import read_metrics
from deepseek_ext.train.trainer import Trainer

TINY = {"hidden_size": 64, "experts": 8, "expert_size": 64, "vocab_size": 384, "seq_len": 32, "tokens": 1024}


def tiny(folder: Path, text: Path, **changes: object) -> CompareOptions:
    values = {**TINY, "run_dir": folder, "data": (str(text),), "threads": 1, "seeds": 1, **changes}
    return CompareOptions(**values)


def curves(offset: float, spread: float, seeds: int = 3) -> tuple[list[list[float]], list[list[float]]]:
    """Falling losses, with a relative offset that varies by seed under noise from step to step, and bare."""
    rng = random.Random(0)
    bases = [[6.0 - 2.0 * t / 100 for t in range(100)] for _ in range(seeds)]
    shifts = [offset + spread * sign for sign in (-1, 0, 1)][:seeds]
    noisy = [
        [loss * (1 + shift + rng.gauss(0, 1e-4)) for loss in base]
        for base, shift in zip(bases, shifts, strict=True)
    ]
    return noisy, bases


@pytest.mark.parametrize(
    ("offset", "spread", "wanted"),
    [
        (0.0, 0.0003, "pass"),
        (0.0018, 0.0003, "pass"),
        (-0.0018, 0.0003, "pass"),
        (0.0024, 0.0003, "miss"),
        (-0.005, 0.0003, "miss"),
        (0.0, 0.004, "not resolvable"),
        (0.003, 0.004, "not resolvable"),
        (0.02, 0.004, "miss"),
    ],
)
def test_verdict_on_known_curves(offset: float, spread: float, wanted: Verdict) -> None:
    found = compare_curves(*curves(offset, spread), warmup=10).second_half
    assert found.mean == pytest.approx(offset, abs=5e-5)
    assert found.standard_error == pytest.approx(spread / math.sqrt(3), rel=0.2)
    assert verdict(found) == wanted


def test_one_seed_resolves_nothing_and_a_diverged_run_is_a_miss() -> None:
    assert verdict(compare_curves(*curves(0.0, 0.0, seeds=1), warmup=0).second_half) == "not resolvable"
    noisy, bases = curves(0.0, 0.0)
    noisy[1][80] = math.nan
    assert verdict(compare_curves(noisy, bases, warmup=0).second_half) == "miss"


def test_seeds_that_agree_by_luck_do_not_outweigh_the_floor() -> None:
    """Measured at 160 steps of 512 tokens: FP8 0.52 % off in every seed, and so was one moved weight."""
    noisy, bases = curves(0.005, 0.0003)
    found = compare_curves(noisy, bases, warmup=0)
    assert verdict(found.second_half) == "miss"
    loud = judged(found, compare_curves(*curves(0.0, 0.006), warmup=0))
    assert loud.standard_error == pytest.approx(0.006 * math.sqrt(2 / 3) / math.sqrt(3), rel=0.1)
    assert verdict(loud) == "not resolvable"
    assert verdict(judged(found, compare_curves(*curves(0.0, 0.0001), warmup=0))) == "miss"


def test_a_longer_run_of_correlated_steps_does_not_shrink_the_error() -> None:
    """Repeating every step tenfold adds no information about the seeds."""
    noisy, bases = curves(0.0, 0.002)

    def longer(all_curves: list[list[float]]) -> list[list[float]]:
        return [[loss for loss in curve for _ in range(10)] for curve in all_curves]

    once = compare_curves(noisy, bases, 0).second_half
    many = compare_curves(longer(noisy), longer(bases), 0).second_half
    assert many.standard_error == pytest.approx(once.standard_error, rel=1e-9)


def test_smoothing_and_its_maximum() -> None:
    assert ema([1.0, 2.0, 2.0]) == pytest.approx([1.0, 1.1, 1.19])
    base = [2.0] * 20
    jump = [*[2.0] * 10, 2.2, *[2.0] * 9]
    found = compare_curves([jump], [base], 0)
    assert found.smoothed_max == pytest.approx(0.01)
    assert compare_curves([jump], [base], 11).smoothed_max == pytest.approx(0.009)
    assert Estimate.of([1.0, 2.0, 3.0]) == Estimate(2.0, 1 / math.sqrt(3))


def test_end_to_end(text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One seed resolves nothing: exit code 3. A second call finds the runs and says the same."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    flags += [f"--data={text_folder}", f"--run-dir={tmp_path}", "--threads=1", "--seeds=1"]
    assert cli.main(["compare-precision", *flags]) == 3
    first = json.loads((tmp_path / "result.json").read_text())
    said = capsys.readouterr().out
    assert said.count(": training in ") == 4
    assert "not resolvable, longer run needed" in said
    assert cli.main(["compare-precision", *flags]) == 3
    assert "training in" not in capsys.readouterr().out
    second = json.loads((tmp_path / "result.json").read_text())
    assert first == second

    losses = {name: runs[0] for name, runs in second["losses"].items()}
    assert {len(curve) for curve in losses.values()} == {8}
    assert len({tuple(curve) for curve in losses.values()}) == 4, "no two runs are the same"
    for curve in losses.values():
        assert curve == pytest.approx(losses["fp32"], rel=0.05)
    assert not list(tmp_path.glob("*/checkpoints"))

    costs = {name: layers[WHOLE] for name, layers in second["costs"].items()}
    all_three = costs["all three, the paper's tiles"]
    assert costs[SHIPPED] == pytest.approx(all_three, rel=0.5)
    for name in RECIPES:
        assert 0.005 < costs[name] < 1
    for name in ("activation alone in 1x128", "weight alone in 128x128", "gradient alone in 1x128"):
        assert costs[name] < all_three


def test_fp32_is_compared_on_the_seeds_that_it_has(
    text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepseek_ext.reproduce.compare._SEEDS_IN_FP32", 1)
    result = measure(tiny(tmp_path, text_folder, seeds=2, tokens=256))
    assert {name: len(curves) for name, curves in result.losses.items()} == {
        "fp8": 2,
        "bf16": 2,
        "fp32": 1,
        FLOOR: 2,
    }
    found = {name: len(comparison.seed_means) for name, comparison in result.comparisons.items()}
    assert found == {"fp8 - bf16": 2, "fp8 - fp32": 1, "bf16 - fp32": 1, f"{FLOOR} - bf16": 2}


def test_an_interrupted_comparison_goes_on(
    text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after three steps, a run ends as if it never had been; the weight is moved once."""
    options = tiny(tmp_path / "whole", text_folder)
    variant = Variant(name=FLOOR, changes={"precision": "bf16"}, at_start=move_one_weight)
    whole = Runs(options.train_config()).train(variant, 0)

    runs = Runs(tiny(tmp_path / "stopped", text_folder).train_config())
    step = Trainer.train_step

    def stop_after_three(trainer: Trainer) -> dict[str, object]:
        row = step(trainer)
        if trainer.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return row

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stop_after_three)
        with pytest.raises(Interrupted):
            runs.train(variant, 0)
    (path,) = (tmp_path / "stopped").glob("*/metrics.jsonl")
    assert len(read_metrics(path)) == 3
    resumed = runs.train(variant, 0)
    assert [row["loss"] for row in resumed] == [row["loss"] for row in whole]
    assert resumed[-1]["held_out_loss"] == whole[-1]["held_out_loss"]


def test_the_moved_weight_moves_by_one_ulp_of_bf16(text_folder: Path, tmp_path: Path) -> None:
    config = tiny(tmp_path, text_folder).train_config()
    config.run_dir.mkdir(exist_ok=True)
    trainer = Trainer(config, prepare_data(config))
    before = [p.detach().clone() for p in trainer.model.parameters()]
    move_one_weight(trainer)
    changed = [(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True) if not a.equal(b)]
    assert len(changed) == 1
    old, new = (t.detach().bfloat16().view(torch.int16).flatten() for t in changed[0])
    assert (old != new).sum() == 1
    assert (new.int() - old.int()).abs().sum() == 1


SIMULATED = [
    Recipe(),
    Recipe(weight=None, gradient=None),
    Recipe(activation=None, weight=None),
    Recipe(activation=None, weight=None, gradient=None),
    Recipe(gradient="128x128"),
    Recipe(activation="tensor", weight="tensor", gradient="tensor"),
]


def test_the_paper_s_recipe_is_the_fp8_product(rng: torch.Generator) -> None:
    """Each of the three products, within the bound that gemm promises for K = 256 (docs/numerics.md)."""
    x, w, grad = (torch.randn(256, 256, generator=rng) for _ in range(3))
    weight = torch.nn.Parameter(w)
    fp8 = product(Derived(), "fp8", weight)
    simulated = SimulatedProduct(through_e4m3(w, "128x128"), Recipe())
    ours, theirs = fp8.operand(x), simulated.operand(x)
    near(
        fp8.fprop(ours, torch.float32),
        simulated.fprop(theirs, torch.float32),
        theirs[0],
        simulated.weight.t(),
    )
    (g, g_t), (s, s_t) = fp8.grad_operands(grad), simulated.grad_operands(grad)
    near(fp8.dgrad(g, torch.float32), simulated.dgrad(s, torch.float32), s[0], simulated.weight)
    ours, theirs = fp8.transposed(ours), simulated.transposed(theirs)
    near(fp8.wgrad(g_t, ours, None), simulated.wgrad(s_t, theirs, None), s_t[0], theirs[0])


def near(a: torch.Tensor, b: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    bound = 2 * (128 + 2 + 4) * 2.0**-24 * (left.abs() @ right.abs())
    assert ((a - b).abs() <= bound).all()


@pytest.mark.parametrize("recipe", SIMULATED)
def test_a_simulated_model_trains_as_its_recipe_says(
    recipe: Recipe, text_folder: Path, tmp_path: Path
) -> None:
    """Gradients of the whole model: with all operands in BF16 those of bf16, else somewhat off."""
    config = tiny(tmp_path, text_folder).train_config().model_config()
    tokens = torch.randint(config.vocab_size, (4, 33))

    def gradients(precision: str, recipe: Recipe | None = None) -> torch.Tensor:
        model = DeepseekV3(config, precision=precision, seed=0)
        if recipe:
            simulate(model, recipe)
        model.loss(tokens[:, :-1], tokens[:, 1:]).total.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    def away(a: torch.Tensor, b: torch.Tensor) -> float:
        return ((a - b).norm() / b.norm()).item()

    bf16, simulated = gradients("bf16"), gradients("fp8", recipe)
    plain = recipe == Recipe(activation=None, weight=None, gradient=None)
    assert away(simulated, bf16) < (0.02 if plain else 0.3)
    if not plain:
        assert away(simulated, bf16) > 0.02


def test_through_e4m3_by_hand() -> None:
    """One large element takes its tile, its block or the tensor with it."""
    x = torch.full((256, 256), 2.0**-10)
    x[0, 0] = 448.0 * 4
    lost = {tiling: int((through_e4m3(x, tiling) != x).sum()) for tiling in ("1x128", "128x128", "tensor")}
    assert lost == {"1x128": 127, "128x128": 128 * 128 - 1, "tensor": 256 * 256 - 1}
    assert torch.equal(through_e4m3(x, None), x)
    assert torch.equal(through_e4m3(x, "1x128"), ops.dequantize_tiles(*ops.quantize_tiles(x)))


def test_a_user_s_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare-precision", "--seeds", "0"]) == 2
    assert "--seeds must be positive, got 0" in capsys.readouterr().err


def test_ablations_run(text_folder: Path, tmp_path: Path) -> None:
    result = measure(tiny(tmp_path, text_folder, ablations=True, tokens=256))
    names: Sequence[str] = [name for name in result.comparisons if name.startswith(("all three", "gradient"))]
    assert len(names) == 5
    assert all(math.isfinite(result.comparisons[name].second_half.mean) for name in names)
    assert compare(tiny(tmp_path, text_folder, ablations=True, tokens=256)) == 3


@pytest.mark.parametrize(("precision", "wanted"), [("fp8", "miss"), ("bf16", "not resolvable")])
def test_a_run_that_diverges_is_an_outcome(
    precision: str,
    wanted: Verdict,
    text_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The others are trained all the same, and the second call trains nothing again."""
    whole = Trainer._forward_backward

    def not_finite_from_step_3_on(self: Trainer, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        main, accepted = whole(self, *args, **kwargs)
        return (main * math.nan if self.config.precision == precision and self.step >= 3 else main), accepted

    monkeypatch.setattr(Trainer, "_forward_backward", not_finite_from_step_3_on)
    options = tiny(tmp_path, text_folder)
    result = measure(options)
    assert result.verdict == wanted
    assert [math.isfinite(loss) for loss in result.losses[precision][0]] == [True] * 3 + [False] * 5
    assert all(map(math.isfinite, result.losses["fp32"][0]))
    assert (result.costs == {}) == (precision == "fp8")
    capsys.readouterr()
    assert compare(options) == {"miss": 1, "not resolvable": 3}[wanted]
    said = capsys.readouterr().out
    assert "training in" not in said
    assert f"diverged: {precision} (1 of 1)" in said
