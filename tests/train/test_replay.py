"""A step that is not finite: which layer is named, and that asking changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from operators_seen import CountOperators  # type: ignore[import-not-found]
from tiny_run import WALL_CLOCK, Flags  # type: ignore[import-not-found]
from tiny_trainer import train  # type: ignore[import-not-found]
from torch import Tensor, nn

from deepseek_ext import cli
from deepseek_ext.train import TrainConfig, checkpoint
from deepseek_ext.train import trainer as trainer_module
from deepseek_ext.train.data import prepare_data
from deepseek_ext.train.metrics import read_metrics
from deepseek_ext.train.replay import NOTHING_FOUND, first_of_ranks
from deepseek_ext.train.trainer import Trainer


@pytest.mark.parametrize("precision", ["fp32", "fp8"])
@pytest.mark.parametrize(
    ("layer", "weight"),
    [
        ("model.layers.0.self_attn.kv_b_proj", "weight"),
        ("model.layers.0.mlp.down_proj", "weight"),
        ("model.layers.1.self_attn.q_a_layernorm", "weight"),
        ("model.layers.1.mlp.gate", "weight"),
        ("model.layers.1.mlp.experts", "down"),
        ("model.layers.1.mlp.shared_experts.up_proj", "weight"),
        ("model.layers.2.eh_proj", "weight"),
        ("model.norm", "weight"),
        ("lm_head", "weight"),
    ],
)
def test_the_layer_with_a_broken_weight_is_named(
    config: TrainConfig, precision: Any, layer: str, weight: str
) -> None:
    trainer = Trainer(replace(config, precision=precision), prepare_data(config))
    broken = trainer.model.get_parameter(f"{layer}.{weight}")
    with torch.no_grad():
        broken.view(-1)[: broken.numel() // 2] = math.inf if layer.endswith("down_proj") else math.nan
    assert trainer.train_step()["not_finite_in"] == f"{layer} (forward; its {weight} is not finite)"


class _Overflow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * math.inf


def break_behind(trainer: Trainer, layer: str, at: set[int], where: str = "backward") -> None:
    """In these steps the layer's output is NaN, or only the gradient that goes back into it infinite."""

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if trainer.step + 1 not in at or not module.training:
            return output
        return output * math.nan if where == "forward" else _Overflow.apply(output)

    trainer.model.get_submodule(layer).register_forward_hook(hook)


@pytest.mark.parametrize("layer", ["model.layers.1.mlp.experts", "model.layers.0.self_attn"])
def test_the_layer_whose_gradient_alone_overflows_is_named(config: TrainConfig, layer: str) -> None:
    trainer = Trainer(config, prepare_data(config))
    break_behind(trainer, layer, {2})
    assert not trainer.train_step()["not_finite"]
    row = trainer.train_step()
    assert math.isfinite(row["loss"])
    assert not math.isfinite(row["grad_norm"])
    assert row["not_finite_in"].startswith(layer)
    assert "(backward" in row["not_finite_in"]
    assert not trainer.train_step()["not_finite"]


def test_a_weight_whose_gradient_overflows_is_named(config: TrainConfig) -> None:
    """All that flows between layers is finite, and so is every gradient but one."""
    trainer = Trainer(config, prepare_data(config))
    norm = trainer.model.get_submodule("model.layers.1.input_layernorm")
    norm.weight.register_hook(lambda gradient: gradient * math.inf)  # type: ignore[union-attr, operator]
    row = trainer.train_step()
    assert math.isfinite(row["loss"])
    assert row["not_finite_in"] == "model.layers.1.input_layernorm (backward; the gradient of its weight)"


def test_a_norm_that_overflows_is_told_from_a_gradient(config: TrainConfig) -> None:
    """up * factor, down / factor: the same output, and a gradient of down that is factor times larger."""
    trainer = Trainer(config, prepare_data(config))
    ffn: Any = trainer.model.model.layers[0].mlp
    with torch.no_grad():
        ffn.up_proj.weight.mul_(1e30)
        ffn.down_proj.weight.div_(1e30)
    row = trainer.train_step()
    assert math.isfinite(row["loss"])
    remark = "backward; its weight's gradient is the largest, and the norm overflows"
    assert row["not_finite_in"] == f"model.layers.0.mlp.down_proj ({remark})"


def test_a_fault_that_does_not_come_again_is_called_one(config: TrainConfig) -> None:
    trainer = Trainer(config, prepare_data(config))
    original = trainer._forward_backward
    calls: list[int] = []

    def once(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        loss, acceptance = original(*args, **kwargs)
        calls.append(1)
        return (loss * math.nan if len(calls) == 1 else loss), acceptance

    trainer._forward_backward = once  # type: ignore[method-assign]
    assert trainer.train_step()["not_finite_in"].startswith("no layer: when run again the step was finite")
    assert len(calls) == 2


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_asking_changes_nothing(config: TrainConfig, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a skipped step the run is, to the bit, one in which no step was replayed; load counted once."""
    config = replace(config, precision="fp8", micro_sequences=2, ema_decay=0.9)
    replay: Callable[..., str] = trainer_module.first_not_finite
    runs = []
    for name, first_not_finite in (("asked", replay), ("not asked", lambda *_: "nothing")):
        monkeypatch.setattr(trainer_module, "first_not_finite", first_not_finite)
        trainer = Trainer(replace(config, run_dir=config.run_dir / name), prepare_data(config))
        break_behind(trainer, "model.layers.1.mlp.experts", {4}, where)
        trainer.config.run_dir.mkdir(parents=True)
        train(trainer)
        runs.append(trainer)
    asked, not_asked = ([*read_metrics(run.config.run_dir / "metrics.jsonl")] for run in runs)
    named = asked[3].pop("not_finite_in")
    assert named.startswith("model.layers.1.mlp.experts (" + where)
    assert not_asked[3].pop("not_finite_in") == "nothing"
    for a, b in zip(asked, not_asked, strict=True):
        assert a | dict.fromkeys(WALL_CLOCK, 0) == b | dict.fromkeys(WALL_CLOCK, 0)
    for (key, a), b in zip(runs[0]._tensors().items(), runs[1]._tensors().values(), strict=True):
        assert torch.equal(a, b), key


def test_what_counts_operators_does_not_count_the_replay(config: TrainConfig) -> None:
    trainer = Trainer(config, prepare_data(config))
    with CountOperators() as seen:
        assert not trainer.train_step()["not_finite"]
    break_behind(trainer, "model.layers.1.mlp.experts", {2})
    with CountOperators() as seen_again:
        assert trainer.train_step()["not_finite"]
    assert seen_again.counts["route"] == seen.counts["route"] > 0


def test_a_run_that_diverges_ends_in_a_sentence(
    flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learning rate far too high: the weights overflow in the next step's products."""
    assert cli.train(TrainConfig(), flags(lr=1e30, checkpoint_every=1, prompts=()), program="test") == 1
    captured = capsys.readouterr()
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    broken = [row for row in rows if row["not_finite"]]
    assert len(broken) == 3
    (line,) = captured.err.splitlines()
    good = tmp_path / "run" / "checkpoints" / f"step-{broken[0]['step'] - 1:08d}"
    assert f"first in {broken[-1]['not_finite_in']}; the last good checkpoint is {good}; try a lower" in line
    assert captured.out.count("the update is skipped") == 2
    assert checkpoint.read_state(good)["step"] == broken[0]["step"] - 1


@pytest.mark.parametrize(
    ("found", "first"),
    [
        (["model.layers.2.mlp (forward)", "model.layers.1.mlp.experts (forward)"], 1),
        (["model.layers.0.mlp (backward)", "model.layers.2.mlp (forward; its weight is not finite)"], 1),
        (["what follows model.layers.1.mlp (backward)", "model.layers.0.mlp (backward)"], 0),
        (["the loss (forward)", "model.norm (forward)"], 1),
        (["the loss (forward)", "model.layers.0.mlp (backward; the gradient of its gate_up)"], 0),
        ([NOTHING_FOUND, "lm_head (backward)"], 1),
        ([NOTHING_FOUND, NOTHING_FOUND], 0),
    ],
)
def test_what_came_first_on_several_ranks(config: TrainConfig, found: list[str], first: int) -> None:
    model = Trainer(config, prepare_data(config)).model
    assert first_of_ranks(model, found) == found[first]
