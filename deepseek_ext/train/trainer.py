"""The training loop."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from ..generate import generate
from ..model import DeepseekV3
from ..ops import accumulate_weight_gradients
from ..parallel.shard import last_micro_batch, materialise, shard, shards_written, whole
from ..parallel.world import World, is_main_process
from . import checkpoint
from .config import TrainConfig
from .data import SAMPLE_TOKENS, RunData, bits_per_byte
from .ema import MovingAverage
from .environment import model_size
from .folder import TOKENIZER
from .metrics import MetricsFile, cut_back
from .observers import Observer
from .optimizer import build_optimizer, local, optimizer_tensors
from .progress import Progress
from .replay import first_not_finite, first_of_ranks
from .telemetry import max_violation

FORMAT = 1  # of state.json
_STEPS_TIMED, _STEPS_WARM = 10, 2
_NOT_FINITE_IN_A_ROW = 3


class RunStopped(RuntimeError):
    """A run that cannot go on; the message says why and what to do."""


@dataclass(slots=True)
class Outcome:
    """How a run ended."""

    finished: bool
    """False when it was interrupted."""
    saved: bool
    """Whether the last state is on the disk."""
    row: dict[str, Any]
    """The metrics of the last step; empty if there was none."""


class Stop:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a flag for the loop.

    A second SIGINT stops at once, and so does the first as long as no step has begun, of which nothing is
    lost.
    """

    def __init__(self) -> None:
        self.requested = False
        self.training = False
        """Whether the loop has begun, which looks at the flag."""

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self._request) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and (self.requested or not self.training):
            raise KeyboardInterrupt
        if not self.requested and is_main_process():
            with suppress(OSError):
                os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")
        self.requested = True


class Trainer:
    """One run: the model, its optimizer, the data, and where it stands.

    config must be derived (`TrainConfig.derived`). Everything that `train_step` reads is either in the
    configuration or in the checkpoint, so a resumed run repeats the uninterrupted one bit for bit. In a world
    of several processes each has a trainer, all of which run the same methods in the same order; each reads
    its share of every batch.
    """

    def __init__(self, config: TrainConfig, data: RunData, world: World | None = None) -> None:
        self.config = config
        self.data = data
        self.world = world = world or World()
        self.schedules = config.schedules(processes=world.size)
        self.model = DeepseekV3(config.model_config(), precision=config.precision, device="meta")
        self.size = model_size(self.model, self.model.config, config.seq_len)
        shard(self.model, world)
        materialise(self.model, world, seed=config.seed)
        self.parameters = list(self.model.parameters())
        self.optimizer = build_optimizer(
            self.model, lr=self.schedules.lr.peak, weight_decay=config.weight_decay
        )
        self.average = MovingAverage(self.model, config.ema_decay) if config.ema_decay else None
        self.step = 0
        self.tokens = 0
        self.seconds = 0.0
        self.not_finite = 0  # steps in a row
        self.last_checkpoint: Path | None = None
        self.last_row: dict[str, Any] = {}
        self.observers: Observer = Observer()
        steps = math.ceil(self.schedules.total / (self.schedules.sequences.end * config.seq_len))
        self.validate_every = config.validate_every or max(1, math.ceil(steps / 4))

    @property
    def finished(self) -> bool:
        return self.tokens >= self.schedules.total

    def train(self, progress: Progress, stop: Stop) -> Outcome:
        """Steps until the budget is spent or a stop is asked for; validates, samples, saves on the way."""
        stop.training = True
        saved_at = self.step if self.last_checkpoint else None
        path = self.config.run_dir / "metrics.jsonl"
        with MetricsFile(path if self.world.is_main else Path(os.devnull)) as metrics:
            while not self.finished and not self._stopped(stop):
                self.world.alive(self.step + 1)
                with self.observers.around(self.step + 1):
                    row = self.train_step()
                row |= progress.speed(row)
                if self.step % self.validate_every == 0 or self.finished:
                    row |= self.validate(progress, stop)
                self.seconds = progress.elapsed
                self.last_row = row
                if warning := metrics.write(row):
                    progress.say(f"WARNING: {warning}")
                self.observers.see(row)
                progress.show(row)
                if row["not_finite"]:
                    self.refuse_to_go_on(progress)
                # A state that may be about to fail pushes out no good one.
                if self.step % self.config.checkpoint_every == 0 and not self.not_finite:
                    saved_at = self.save(progress)
        if saved_at != self.step:
            saved_at = self.save(progress)
        return Outcome(self.finished, saved_at == self.step, self.last_row)

    def train_step(self) -> dict[str, Any]:
        """One optimizer step; returns its row of metrics."""
        started = time.perf_counter()
        s = self.schedules
        tokens, targets = self.data.batches.batch(s.sequences(self.tokens))
        seen = self.tokens + tokens.numel()
        gamma, lr = s.bias_update_speed(seen), s.lr(seen)

        forward_backward = partial(self._forward_backward, tokens, targets, mtp_weight=s.mtp_weight(seen))
        losses = forward_backward()
        gradients = [local(p.grad) for p in self.parameters if p.grad is not None]
        numbers = self._over_ranks(*losses, torch.nn.utils.get_total_norm(gradients))
        violations = max_violation(self.model.router_load())
        # The only wait for the device in a step, and the only check: is the update finite?
        loss, acceptance, norm_, *max_vio = torch.cat([torch.stack(numbers), violations]).tolist()
        finite = math.isfinite(loss) and math.isfinite(norm_)
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step(grad_scale=min(1.0, self.config.grad_clip / max(norm_, 1e-12)))
            if self.average:
                self.average.update(self.optimizer.param_groups[0]["step"])
        else:
            found = self.world.all(first_not_finite(self.model, lambda: forward_backward()[0]))
            culprit = first_of_ranks(self.model, found)
        self.model.update_router_bias(gamma if finite else 0.0)  # also sets the load back
        self.optimizer.zero_grad()

        self.not_finite = 0 if finite else self.not_finite + 1
        self.step += 1
        self.tokens = seen
        seconds = time.perf_counter() - started
        row = {
            "step": self.step,
            "tokens": seen,
            "loss": loss,
            "bits_per_byte": loss / (math.log(2) * self.data.bytes_per_token),
            "lr": lr,
            "grad_norm": norm_,
            "tokens_per_second": tokens.numel() / seconds,
            "max_vio": max(max_vio, default=0.0),
            "max_vio_by_router": max_vio,
            "mtp_acceptance": acceptance if self.config.mtp_depth else None,
            "not_finite": not finite,
        }
        return row if finite else row | {"not_finite_in": culprit}

    def _over_ranks(self, main: Tensor, accepted: Tensor, norm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The numbers of a step, and each router's load, of all ranks: one exchange for all of them."""
        if self.world.size == 1:
            return main, accepted, norm
        load = self.model.router_load()
        own = torch.stack([main, accepted, norm]).double()
        own[2].square_()
        total = self.world.total(torch.cat([own, load.flatten().double()]))  # FP64 keeps counts exact
        self.model.set_router_load(total[3:].view_as(load))
        main, accepted, squares = total[:3]
        return main.float(), accepted.float(), squares.sqrt().float()

    def _forward_backward(
        self, tokens: Tensor, targets: Tensor, *, mtp_weight: float
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the whole step; returns what this rank adds to the main loss and to the first MTP
        module's acceptance."""
        sequences, num_targets = tokens.shape[0], targets.numel()
        device = self.world.device
        tokens, targets = (self.world.rows(x).to(device) for x in (tokens, targets))
        size = self.config.micro_sequences or len(tokens)
        main, accepted = torch.zeros((), device=device), torch.zeros((), device=device)
        for start in range(0, len(tokens), size):
            micro_tokens, micro_targets = tokens[start : start + size], targets[start : start + size]
            last_micro_batch(self.model, start + size >= len(tokens))
            with accumulate_weight_gradients():
                loss = self.model.loss(
                    micro_tokens,
                    micro_targets,
                    num_targets=num_targets,
                    num_sequences=sequences,
                    document_starts=self.data.document_starts(micro_tokens),
                    mtp_weight=mtp_weight,
                )
            loss.total.backward()
            main += loss.main.detach()
            if loss.acceptance:
                accepted += loss.acceptance[0].detach() * (len(micro_tokens) / sequences)
        return main, accepted

    def validate(self, progress: Progress, stop: Stop) -> dict[str, float]:
        """Bits per byte over the whole held-out text, and a few samples; nothing once a stop is asked for."""
        score = self._bits_per_byte(stop)
        if self._stopped(stop):
            return {}
        progress.say(f"step {self.step}: validation {score:.4f} bits/byte")
        for prompt in self.data.prompts:
            if not self._stopped(stop):
                progress.say(f"  {sample(self.model, self.data, prompt)}")
        if not self.average:
            return {"val_bits_per_byte": score}
        with self.average.in_place():
            average = self._bits_per_byte(stop)
        if self._stopped(stop):
            return {"val_bits_per_byte": score}
        progress.say(f"step {self.step}: validation {average:.4f} bits/byte with averaged weights")
        return {"val_bits_per_byte": score, "val_bits_per_byte_ema": average}

    def _bits_per_byte(self, stop: Stop) -> float:
        return bits_per_byte(self.model, self.data, self.world, stop=lambda: self._stopped(stop))

    def _stopped(self, stop: Stop) -> bool:
        """Whether any rank was asked to stop; the same answer on all of them."""
        return self.world.any(stop.requested)

    def refuse_to_go_on(self, progress: Progress) -> None:
        """Says that an update was skipped, and why; raises RunStopped at the third in a row."""
        culprit = self.last_row["not_finite_in"]
        if self.not_finite < _NOT_FINITE_IN_A_ROW:
            progress.say(
                f"step {self.step}: loss or gradient is not finite, first in {culprit}; the update is skipped"
            )
            return
        good = (
            f"the last good checkpoint is {self.last_checkpoint}"
            if self.last_checkpoint
            else "nothing was saved yet"
        )
        raise RunStopped(
            f"loss or gradient was not finite {self.not_finite} steps in a row, up to step {self.step}, "
            f"first in {culprit}; {good}; try a lower --lr or another --precision in another --run-dir"
        )

    def save(self, progress: Progress) -> int | None:
        """Writes a checkpoint and returns its step; a failure is said, and leaves the earlier ones."""
        state = {
            "format": FORMAT,
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "drawn": self.data.batches.drawn,
            "not_finite": self.not_finite,
            "optimizer_steps": [group["step"] for group in self.optimizer.param_groups],
            "row": self.last_row,
            "manifest": self.data.manifest,
            "tokenizer_hash": self.data.tokenizer_hash,
            "config": self.config.to_json(),
        }
        folder = self.config.run_dir / "checkpoints"
        try:
            self.world.lead(self._keep_tokenizer)
            self.last_checkpoint = checkpoint.save(
                folder,
                self.step,
                self._tensors(),
                state,
                keep_last=self.config.keep_last,
                world=self.world,
            )
        except OSError as error:
            kept = (
                f"the last good one is {self.last_checkpoint}"
                if self.last_checkpoint
                else "there is none yet"
            )
            progress.say(
                f"WARNING: no checkpoint at step {self.step} ({error}); {kept}; next try at the next interval"
            )
            return None
        return self.step

    def load_weights(self, path: Path) -> None:
        """Takes the weights and router biases of a checkpoint, verified before, and nothing else."""
        checkpoint.load_tensors(path, self.weights(), self.world)
        shards_written(self.model)
        self.model.weights_changed()

    def _keep_tokenizer(self) -> None:
        """Writes the tokenizer again if someone removed the folder."""
        if not (self.config.run_dir / TOKENIZER).exists():
            self.config.run_dir.mkdir(parents=True, exist_ok=True)
            self.data.save_tokenizer(self.config.run_dir)

    def resume(self, path: Path, state: dict[str, Any]) -> None:
        """Goes back to where a checkpoint stood; `state` is what `checkpoint.read_state` returned for it."""
        tensors = self._tensors()
        checkpoint.load_tensors(path, tensors, self.world)
        shards_written(self.model)
        torch.set_rng_state(tensors["rng.cpu"])
        self.model.weights_changed()
        for group, step in zip(self.optimizer.param_groups, state["optimizer_steps"], strict=True):
            group["step"] = step
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.data.batches.drawn = list(state["drawn"])
        self.not_finite = state["not_finite"]
        self.last_row = state["row"]
        self.last_checkpoint = path
        if self.world.is_main:
            cut_back(self.config.run_dir / "metrics.jsonl", self.step)

    def _tensors(self) -> dict[str, Tensor]:
        """What a checkpoint stores; each process has its part of it."""
        return {
            **self.weights(),
            **optimizer_tensors(self.model, self.optimizer, self._whole),
            **(self.average.tensors(self._whole) if self.average else {}),
            "rng.cpu": torch.get_rng_state(),
        }

    def weights(self) -> dict[str, Tensor]:
        """The model's parameters and buffers as a checkpoint stores them, sharing its memory."""
        return {name: self._whole(name, tensor) for name, tensor in self.model.state_dict().items()}

    def _whole(self, name: str, held: Tensor) -> Tensor:
        return whole(self.model, self.world, name, held)


def sample(model: DeepseekV3, data: RunData, prompt: str) -> str:
    """A prompt and its greedy continuation, on one line."""
    text = generate(model, data.tokenizer, prompt, max_new_tokens=SAMPLE_TOKENS)
    return repr(prompt + text)


def tokens_for_minutes(config: TrainConfig, data: RunData, world: World) -> tuple[int, float]:
    """The token budget that fits into config.minutes, a whole number of steps, and the measured tokens/s.

    Times ten steps of a model that is then thrown away, so the run itself starts from its seed.
    """
    assert config.minutes is not None
    trainer = Trainer(config, replace(data, batches=data.batches.copy()), world)
    for _ in range(_STEPS_WARM):
        trainer.train_step()
    before, started = trainer.tokens, time.perf_counter()
    for _ in range(_STEPS_TIMED):
        trainer.train_step()
    rate = world.lead(lambda: (trainer.tokens - before) / (time.perf_counter() - started))
    step = trainer.schedules.sequences.end * config.seq_len
    return max(1, round(config.minutes * 60 * rate / step)) * step, rate
