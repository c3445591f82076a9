"""The loop where the numbers or the disk fail, and what the progress line says."""

from __future__ import annotations

import math
import signal
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_trainer import quiet_progress, train  # type: ignore[import-not-found]
from torch.utils.flop_counter import FlopCounterMode

from deepseek_ext import DeepseekV3
from deepseek_ext.ops import accumulate_weight_gradients
from deepseek_ext.train import TrainConfig, checkpoint
from deepseek_ext.train import trainer as trainer_module
from deepseek_ext.train.data import bits_per_byte, prepare_data
from deepseek_ext.train.environment import model_size
from deepseek_ext.train.metrics import read_metrics
from deepseek_ext.train.trainer import Outcome, RunStopped, Stop, Trainer


def poison(trainer: Trainer, steps: set[int]) -> None:
    """Makes the loss of these steps NaN."""
    loss = trainer.model.loss

    def poisoned(*args: Any, **kwargs: Any) -> Any:
        result = loss(*args, **kwargs)
        if trainer.step + 1 in steps and trainer.model.training:
            object.__setattr__(result, "total", result.total * math.nan)
            object.__setattr__(result, "main", result.main * math.nan)
        return result

    trainer.model.loss = poisoned  # type: ignore[method-assign]


def test_a_step_that_is_not_finite_is_skipped(config: TrainConfig) -> None:
    trainer = Trainer(config, prepare_data(config))
    poison(trainer, {3, 4, 7})
    before: dict[str, torch.Tensor] = {}
    step = trainer.train_step

    def watched() -> dict[str, Any]:
        if trainer.step == 2:
            before.update({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})
        row = step()
        if trainer.step == 4:
            for name, tensor in trainer.model.state_dict().items():
                assert torch.equal(tensor, before[name]), name
            assert not trainer.model.router_load().any()
        return row

    trainer.train_step = watched  # type: ignore[method-assign]
    outcome, said = train(trainer)
    assert before
    assert outcome.finished
    metrics = read_metrics(config.run_dir / "metrics.jsonl")
    assert [row["step"] for row in metrics if row["not_finite"]] == [3, 4, 7]
    assert metrics[2]["loss"] is None
    assert {row["not_finite_in"] for row in metrics if row["not_finite"]} == {"the loss (forward)"}
    said_of_it = "loss or gradient is not finite, first in the loss (forward); the update is skipped"
    assert f"step 3: {said_of_it}" in said
    assert [group["step"] for group in trainer.optimizer.param_groups] == [7, 7]


def test_three_in_a_row_stop_the_run(config: TrainConfig) -> None:
    trainer = Trainer(config, prepare_data(config))
    poison(trainer, {5, 6, 7})
    with pytest.raises(
        RunStopped, match=r"3 steps in a row, up to step 7, first in .*; the last good .*step-00000004;"
    ):
        train(trainer)
    # A checkpoint of a run that is failing would push out good ones.
    names = [path.name for path in checkpoint.list_checkpoints(config.run_dir / "checkpoints")]
    assert names == ["step-00000002", "step-00000004"]


def test_a_full_disk_does_not_stop_the_run(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(config, prepare_data(config))
    save = checkpoint.save

    def sometimes_full(folder: Path, step: int, *args: Any, **kwargs: Any) -> Path:
        if step in (4, 6):
            raise OSError(28, "No space left on device")
        return save(folder, step, *args, **kwargs)

    monkeypatch.setattr(checkpoint, "save", sometimes_full)
    outcome, said = train(trainer)
    assert outcome == Outcome(True, True, trainer.last_row)
    assert "no checkpoint at step 4 ([Errno 28] No space left on device); the last good one is" in said
    names = [path.name for path in checkpoint.list_checkpoints(config.run_dir / "checkpoints")]
    assert names == ["step-00000002", "step-00000008", "step-00000010"]


def test_a_last_save_that_fails_is_not_called_saved(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(config, prepare_data(config))

    def full(*_: Any, **__: Any) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    outcome, said = train(trainer)
    assert outcome.finished
    assert not outcome.saved
    assert "there is none yet" in said


def test_accumulating_in_place_changes_no_bit(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a run whose gradients all go through autograd, in FP8, two micro-batches a step."""
    config = replace(config, precision="fp8", micro_sequences=2)
    runs = []
    for how in (accumulate_weight_gradients, nullcontext):
        monkeypatch.setattr(trainer_module, "accumulate_weight_gradients", how)
        trainer = Trainer(config, prepare_data(config))
        runs.append([trainer.train_step() for _ in range(4)])
    for a, b in zip(*runs, strict=True):
        assert (a["loss"], a["grad_norm"]) == (b["loss"], b["grad_norm"])


def test_every_step_follows_every_schedule(config: TrainConfig) -> None:
    """Of 1280 tokens the paper's 10, 14.3 and 14.633 T are 865, 1237 and 1266; the batch grows until 41."""
    trainer = Trainer(replace(config, sequences_start=2), prepare_data(config))
    asked: list[tuple[int, float]] = []
    speeds: list[float] = []
    loss, update = trainer.model.loss, trainer.model.update_router_bias

    def watched_loss(tokens: torch.Tensor, *args: Any, mtp_weight: float, **kwargs: Any) -> Any:
        asked.append((len(tokens), mtp_weight))
        return loss(tokens, *args, mtp_weight=mtp_weight, **kwargs)

    def watched_update(speed: float) -> None:
        speeds.append(speed)
        update(speed)

    trainer.model.loss = watched_loss  # type: ignore[method-assign]
    trainer.model.update_router_bias = watched_update  # type: ignore[method-assign]
    rows = []
    while not trainer.finished:
        rows.append(trainer.train_step())
    assert [row["tokens"] for row in rows] == [64, *range(192, 1344, 128), 1344]
    assert asked == [(2, 0.3), *[(4, 0.3)] * 6, *[(4, 0.1)] * 4]
    assert speeds == [0.01] * 10 + [0.0]
    peak = trainer.schedules.lr.peak
    assert [row["lr"] for row in rows[1:7]] == [peak] * 6
    assert rows[-1]["lr"] == pytest.approx(peak * 73 / 2200)


def test_gradients_are_clipped(config: TrainConfig) -> None:
    trainer = Trainer(config, prepare_data(config))
    scales: list[float] = []
    step = trainer.optimizer.step

    def watched(*args: Any, grad_scale: float = 1.0) -> Any:
        scales.append(grad_scale)
        return step(*args, grad_scale=grad_scale)

    trainer.optimizer.step = watched  # type: ignore[method-assign]
    trainer.config.grad_clip = 0.5
    norms = [trainer.train_step()["grad_norm"] for _ in range(3)]
    assert scales == [pytest.approx(min(1.0, 0.5 / norm)) for norm in norms]
    assert min(norms) > 0.5


def test_bits_per_byte_counts_every_target_once(config: TrainConfig) -> None:
    data = prepare_data(config)
    model = DeepseekV3(config.model_config(), precision="fp32", seed=1)
    nats = 0.0
    with torch.no_grad():
        for tokens, targets in zip(*data.validation, strict=True):
            logits = model(tokens[None], use_mtp=False).logits[0].double().log_softmax(-1)
            for row, target in zip(logits, targets.tolist(), strict=True):
                if target >= 0:
                    nats -= row[target].item()
    expected = nats / (math.log(2) * len(data.corpus.held_out_bytes()))
    model.update_router_bias(0.0)
    assert bits_per_byte(model, data) == pytest.approx(expected, rel=1e-5)
    assert model.training
    assert not model.router_load().any()


def test_model_size_counts_parameters(config: TrainConfig) -> None:
    shape = config.model_config()
    model = DeepseekV3(shape, device="meta", precision="fp32")
    size = model_size(model, shape, config.seq_len)
    assert size.total == sum(p.numel() for p in model.parameters())
    mtp = sum(p.numel() for name, p in model.named_parameters() if ".layers.2." in name)
    idle_experts = (shape.n_routed_experts - shape.num_experts_per_tok) * 3 * 64 * 64
    other_rows = (shape.vocab_size - 1) * shape.hidden_size
    assert size.active == size.total - mtp - idle_experts - other_rows
    # Forward as counted, of attention half the matrix, and twice as much backward; MTP has a token less.
    tokens = torch.zeros(4, config.seq_len, dtype=torch.int64)
    model = DeepseekV3(shape, precision="fp8")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.loss(tokens, tokens)
    attention = counter.get_flop_counts()["Global"][torch.ops.deepseek_ext.causal_attention]
    expected = 3 * (counter.get_total_flops() - attention / 2) / tokens.numel()
    assert size.flops_per_token == pytest.approx(expected, rel=0.02)


def test_plain_lines_are_few(config: TrainConfig) -> None:
    _, said = train(Trainer(config, prepare_data(config)))
    assert 2 <= sum(line.startswith("step ") and "tokens/s" in line for line in said.splitlines()) <= 4
    assert "\x1b" not in said


def test_the_first_interrupt_asks_and_the_second_stops() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Stop().listening() as stop:
        with pytest.raises(KeyboardInterrupt):  # no step has begun
            signal.raise_signal(signal.SIGINT)
        stop.training = True
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with Stop().listening() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested
    assert signal.getsignal(signal.SIGINT) is before


def test_a_stop_before_the_first_step_is_saved_too(config: TrainConfig) -> None:
    trainer = Trainer(config, prepare_data(config))
    config.run_dir.mkdir()
    stop = Stop()
    stop.requested = True
    outcome = trainer.train(quiet_progress(trainer), stop)
    assert outcome == Outcome(finished=False, saved=True, row={})
    assert [p.name for p in checkpoint.list_checkpoints(config.run_dir / "checkpoints")] == ["step-00000000"]
