"""The moving average of the weights: right, stored, and out of the way of training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from operators_seen import CountOperators  # type: ignore[import-not-found]
from tiny_trainer import train  # type: ignore[import-not-found]
from torch import nn

from deepseek_ext.train import TrainConfig, checkpoint
from deepseek_ext.train.data import bits_per_byte, prepare_data
from deepseek_ext.train.ema import MovingAverage
from deepseek_ext.train.metrics import read_metrics
from deepseek_ext.train.session import load_run
from deepseek_ext.train.trainer import Trainer


def test_it_averages_what_it_is_given(rng: torch.Generator) -> None:
    model = nn.Linear(5, 3)
    average = MovingAverage(model, 0.7)
    expected = torch.zeros(3, 5, dtype=torch.float64)  # before the first step: no matter what
    for step in range(1, 40):
        with torch.no_grad():
            model.weight.copy_(torch.randn(3, 5, generator=rng))
        average.update(step)
        decay = min(0.7, (step - 1) / (step + 8))
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
    stored = average.tensors()
    assert stored.keys() == {"ema.weight", "ema.bias"}
    assert stored["ema.weight"].dtype == torch.float32
    torch.testing.assert_close(stored["ema.weight"].double(), expected, rtol=0, atol=1e-6)
    own = model.weight.detach().clone()
    with average.in_place():
        assert torch.equal(model.weight, stored["ema.weight"])
    assert torch.equal(model.weight, own)


def test_an_exception_leaves_the_model_its_own_weights() -> None:
    model = nn.Linear(5, 3)
    average = MovingAverage(model, 0.7)
    with torch.no_grad():
        model.weight.add_(1)
    own = model.weight.detach().clone()
    with pytest.raises(KeyboardInterrupt), average.in_place():
        raise KeyboardInterrupt
    assert torch.equal(model.weight, own)


def test_each_swap_renews_the_weight_codes(config: TrainConfig) -> None:
    trainer = Trainer(replace(config, precision="fp8", ema_decay=0.9), prepare_data(config))
    trainer.train_step()
    trainer.train_step()
    tokens, targets = trainer.data.batches.batch(1)

    def loss() -> tuple[int, float]:
        """Weights quantised, and the loss."""
        with torch.no_grad(), CountOperators() as seen:
            value = trainer.model.loss(tokens, targets).main.item()
        return seen.counts["quantize_blocks"], value

    every, own = loss()
    assert every > 0
    assert loss() == (0, own)
    assert trainer.average is not None
    with trainer.average.in_place():
        assert loss()[0] == every
        assert loss()[0] == 0
        assert loss()[1] != own
    assert loss() == (every, own)
    assert loss() == (0, own)


@pytest.mark.parametrize("precision", ["fp8", "bf16"])
def test_training_goes_on_as_if_the_average_were_never_used(config: TrainConfig, precision: Any) -> None:
    runs = []
    for decay, every in ((None, 100), (0.9, 1)):
        settings = replace(config, precision=precision, ema_decay=decay, validate_every=every)
        trainer = Trainer(replace(settings, run_dir=config.run_dir / str(every)), prepare_data(config))
        trainer.config.run_dir.mkdir(parents=True)
        train(trainer)
        runs.append(trainer)
    without, with_average = runs
    for name, tensor in without._tensors().items():
        assert torch.equal(tensor, with_average._tensors()[name]), name
    rows = [read_metrics(run.config.run_dir / "metrics.jsonl") for run in runs]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
    assert rows[0][-1]["val_bits_per_byte"] == rows[1][-1]["val_bits_per_byte"]
    assert all("val_bits_per_byte_ema" not in row for row in rows[0])
    both = [(row["val_bits_per_byte"], row["val_bits_per_byte_ema"]) for row in rows[1]]
    assert [a == b for a, b in both] == [True] + [False] * 9  # it begins as the first step's weights


def test_the_average_can_be_loaded_alone(config: TrainConfig) -> None:
    data = prepare_data(config)
    trainer = Trainer(replace(config, ema_decay=0.9), data)
    config.run_dir.mkdir()
    data.save_tokenizer(config.run_dir)
    train(trainer)
    model, _, _ = load_run(config.run_dir, average=True)
    last = read_metrics(config.run_dir / "metrics.jsonl")[-1]
    assert bits_per_byte(model, data) == last["val_bits_per_byte_ema"]
    assert trainer.average is not None
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, trainer.average.tensors()[f"ema.{name}"]), name


def test_a_run_without_an_average_says_so(config: TrainConfig) -> None:
    trainer = Trainer(config, prepare_data(config))
    train(trainer)
    assert checkpoint.list_checkpoints(config.run_dir / "checkpoints")
    with pytest.raises(ValueError, match=r"holds no averaged weights: .* without --ema-decay"):
        load_run(config.run_dir, average=True)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5])
def test_a_decay_that_averages_nothing_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="--ema-decay must lie between 0 and 1"):
        TrainConfig(ema_decay=decay)
