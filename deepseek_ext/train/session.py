"""A run from its configuration to its last line: prepares or resumes, trains, and says how it went."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from .. import _native, ops
from ..hf import no_such_folder
from ..hf_layout import CONFIG
from ..model import DeepseekV3
from ..nn.moe import check_widths
from ..parallel.world import World, host, joined, launched_size, led
from . import checkpoint
from .checkpoint import DamagedCheckpoint
from .config import TrainConfig, differences
from .config import describe as describe_config
from .corpus import describe as describe_corpus
from .data import RunData, bits_per_byte, prepare_data
from .ema import stored_name
from .environment import keep_freed_memory, matmul_peak, peak_memory, slow_fallbacks, threads
from .folder import TOKENIZER, held
from .loggers import TensorBoard, WandB, check_installed
from .metrics import cut_back
from .observers import Observer, Observers
from .profiling import Profiler, window
from .progress import Progress, clock
from .telemetry import Telemetry
from .tokenizer import load_tokenizer, tokenizer_hash
from .trainer import FORMAT, Outcome, RunStopped, Stop, Trainer, sample, tokens_for_minutes

# What a second phase may change of a model: what no weight depends on.
_MAY_DIFFER = ("rope_scaling", "max_position_embeddings", "balance_loss", "balance_alpha")


def run(config: TrainConfig, *, command: Sequence[str] = ("deepseek-ext", "train")) -> int:
    """Trains as `config` says and returns the exit code: 0 when the last state is saved, 1 when it is not.

    command: the words of the command line that started this run, for the lines that say how to continue.
    Raises ValueError for what the user can put right, RunStopped when the numbers are no longer finite.
    """
    config = config.derived()
    config.check_processes(launched_size())
    check_widths(config.model_config(), config.precision)
    check_installed(config.log)
    if config.init_from is not None and config.init_from.resolve() == config.run_dir.resolve():
        raise ValueError(f"--run-dir {config.run_dir} is the run whose weights to start from; choose another")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with (
        Stop().listening() as stop,
        joined(ep=config.ep, timeout=config.timeout) as world,
        ExitStack() as stack,
    ):
        if not world.is_main:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(nowhere))  # one progress line, not one a process
        try:
            world.lead(lambda: stack.enter_context(held(config.run_dir, anew=config.resume == "never")))
            _check_shared(config.run_dir, world)
            trainer = _resumed(config, world) or _fresh(config, world)
            return _train(trainer, stop, command)
        except Exception as error:
            if world.size == 1 or led(error):
                raise
            if isinstance(error, RunStopped):  # on every rank
                if world.is_main:
                    raise
                return 1
            why, others = world.end(error)
            if not others and not isinstance(error, (ValueError, OSError)):  # a fault, which began here
                traceback.print_exception(error)
            raise RunStopped(why) from error


def _check_shared(run_dir: Path, world: World) -> None:
    """Each process writes its part of a checkpoint into the run directory, and the main one all else."""
    blind = [where for sees, where in world.all((run_dir.is_dir(), host())) if not sees]

    def check() -> None:
        if blind:
            raise ValueError(
                f"--run-dir {run_dir} is not there for {blind[0]}; choose one that all processes share"
            )

    world.lead(check)


def _train(trainer: Trainer, stop: Stop, command: Sequence[str]) -> int:
    _say_start(trainer)
    peak = matmul_peak()
    print(f"share of peak means of {peak.flops / 1e9:,.0f} GFLOP/s: {peak.name}", flush=True)
    keep_freed_memory()
    progress = Progress(
        total_tokens=trainer.schedules.total,
        flops_per_token=trainer.size.flops_per_token,
        peak=peak,
        seconds_before=trainer.seconds,
        tokens_before=trainer.tokens,
    )
    with progress, _observers(trainer, progress) as trainer.observers:
        outcome = trainer.train(progress, stop)
    if outcome.finished:
        _say_end(trainer, outcome, command)
    else:
        _say_interrupted(trainer, outcome, command)
    return 0 if outcome.saved else 1


def load_run(folder: Path, *, average: bool = False) -> tuple[DeepseekV3, Tokenizer, TrainConfig]:
    """The model, tokenizer and configuration of a run: of its newest readable checkpoint, or of a given one.

    folder: the run directory, or one of its checkpoints. average: the moving average of the weights instead
    of the weights. Raises ValueError if nothing there can be read, or the run keeps no average.
    """
    for path, config in _stored(folder):
        if average and config.ema_decay is None:
            raise ValueError(f"{path} holds no averaged weights: its run was trained without --ema-decay")
        model = DeepseekV3(config.model_config(), precision=config.precision, seed=config.seed)
        tensors: dict[str, Tensor] = dict(model.state_dict())
        if average:
            for name, _ in model.named_parameters():
                tensors[stored_name(name)] = tensors.pop(name)
        try:
            checkpoint.load_tensors(path, tensors)
        except DamagedCheckpoint as error:
            _warn_damaged(error)
            continue
        model.weights_changed()
        return model.eval(), load_tokenizer(config.run_dir / TOKENIZER), config
    raise _nothing_in(folder)


def _observers(trainer: Trainer, progress: Progress) -> Observers:
    """What the configuration asks for."""
    config, step, world = trainer.config, trainer.step, trainer.world
    asked: list[Observer] = []
    if config.telemetry is not None:
        path, every = config.run_dir / "telemetry.jsonl", config.telemetry
        asked.append(
            Telemetry(trainer.model, path, every=every, after_step=step, say=progress.say, world=world)
        )
    if not world.is_main:
        return Observers(asked, progress.say)
    if config.profile is not None:
        asked.append(Profiler(window(config.profile), config.run_dir / "profile", progress.say))
    if "tensorboard" in config.log:
        asked.append(TensorBoard(config.run_dir, config.to_json(), after_step=step))
    if "wandb" in config.log:
        asked.append(WandB(config.run_dir, config.to_json()))
    return Observers(asked, progress.say)


def stored_config(folder: Path) -> TrainConfig:
    """The configuration of a run, or of one of its checkpoints; raises ValueError if none can be read."""
    for _, config in _stored(folder):
        return config
    raise _nothing_in(folder)


def stored_manifest(folder: Path) -> str:
    """The hash of the text that a run, or one of its checkpoints, was trained on; raises as stored_config."""
    for path, _ in _stored(folder):
        return str(checkpoint.read_state(path)["manifest"])
    raise _nothing_in(folder)


def _stored(folder: Path) -> Iterator[tuple[Path, TrainConfig]]:
    """The checkpoints of a run directory, newest first, or the one that folder is, with the configuration."""
    run_dir, found = folder, _readable(folder)
    if (folder / checkpoint.STATE).is_file():
        run_dir = folder.resolve().parent.parent
        found = iter([(folder, checkpoint.read_state(folder))])
    for path, state in found:
        yield path, replace(_stored_config(path, state), run_dir=run_dir)


def _nothing_in(folder: Path) -> ValueError:
    return ValueError(
        f"{folder} holds no checkpoint that can be read; name the run directory of a training run"
    )


def _start_from(trainer: Trainer, folder: Path) -> None:
    """Gives the model the weights and router biases of another run."""
    world, stored = trainer.world, _stored(folder)
    while found := world.lead(lambda: next(stored, None)):
        path, config = found
        world.lead(partial(_check_same_shape, trainer, folder, config))
        try:
            trainer.load_weights(path)
        except DamagedCheckpoint as error:
            _warn_damaged(error)
            continue
        print(
            f"starting from the weights of {folder}, trained on {config.tokens:,} tokens in sequences of "
            f"{config.seq_len}"
        )
        return
    world.lead(partial(_raise, _nothing_in(folder)))


def _raise(error: Exception) -> None:
    raise error


def _check_start(folder: Path) -> None:
    """Before anything is prepared: whether a run can start from this folder's weights."""
    if not folder.is_dir():
        raise ValueError(f"--init-from: {no_such_folder(folder, 'a training run')}")
    if (folder / CONFIG).is_file():
        raise ValueError(
            f"--init-from {folder} is a Hugging Face checkpoint, and a run starts from the weights of a run; "
            "train on from it in a loop of your own, with deepseek_ext.load_hf"
        )


def _check_same_shape(trainer: Trainer, folder: Path, config: TrainConfig) -> None:
    shape, theirs = trainer.model.config, config.model_config()
    same = replace(theirs, **{name: getattr(shape, name) for name in _MAY_DIFFER})
    if different := [name for name, value in asdict(shape).items() if value != getattr(same, name)]:
        name = different[0]
        raise ValueError(
            f"--init-from {folder}: its model has {name} {getattr(theirs, name)}, this run "
            f"{getattr(shape, name)}; leave the flags that shape the model as they were"
        )


def _fresh(config: TrainConfig, world: World) -> Trainer:
    if config.init_from is not None:
        world.lead(partial(_check_start, config.init_from))
    data = world.main_first(lambda: prepare_data(config))
    world.lead(lambda: _begin_folder(config.run_dir, data))
    if config.minutes is not None:
        tokens, rate = tokens_for_minutes(config, data, world)
        config = replace(config, tokens=tokens)
        print(
            f"--minutes {config.minutes:g}: ten steps ran at {rate:,.0f} tokens/s, so the run is "
            f"{tokens:,} tokens"
        )
    torch.manual_seed(config.seed)
    trainer = Trainer(config, data, world)
    if config.init_from is not None:
        _start_from(trainer, config.init_from)
    return trainer


def _begin_folder(run_dir: Path, data: RunData) -> None:
    cut_back(run_dir / "metrics.jsonl", 0)
    data.save_tokenizer(run_dir)


def _resumed(config: TrainConfig, world: World) -> Trainer | None:
    """The run of run_dir as its newest usable checkpoint has it; None if there is no checkpoint."""
    usable = _usable(config)
    while found := world.lead(lambda: next(usable, None)):
        path, state, budget = found
        data = world.main_first(lambda: _same_data(config, state))  # noqa: B023 -- called at once
        trainer = Trainer(budget, data, world)
        try:
            trainer.resume(path, state)
        except DamagedCheckpoint as error:
            if world.is_main:
                _set_aside(path, error)
            continue
        print(f"resuming from {path}: step {trainer.step}, {trainer.tokens:,} tokens seen")
        return trainer
    return None


def _usable(config: TrainConfig) -> Iterator[tuple[Path, dict[str, Any], TrainConfig]]:
    """The checkpoints that this run may go on from, newest first, with the configuration it then has."""
    found = False
    for path, state in _readable(config.run_dir, set_aside=True):
        found = True
        stored = _stored_config(path, state)
        if different := differences(stored, config):
            raise ValueError(
                f"{config.run_dir} holds another run ({'; '.join(different)}); choose another --run-dir, "
                "or write --resume never to begin anew"
            )
        yield path, state, _with_budget(config, stored)
    if found or any((config.run_dir / "checkpoints").glob("*.damaged")):
        raise ValueError(
            f"{config.run_dir} has no checkpoint left that can be read; write --resume never to begin anew"
        )


def _with_budget(config: TrainConfig, stored: TrainConfig) -> TrainConfig:
    """The configuration with its budget: --minutes stands for the tokens that were fixed at the start."""
    if config.minutes is not None:
        if config.minutes != stored.minutes:
            raise ValueError(
                f"--minutes {config.minutes:g}: this run's length is already fixed at {stored.tokens} "
                "tokens; leave --minutes out and write --tokens to change it"
            )
        return replace(config, tokens=stored.tokens)
    if config.tokens != stored.tokens:
        print(
            f"--tokens {config.tokens}: the run was planned for {stored.tokens}; its schedules stretch "
            "accordingly"
        )
    return config


def _same_data(config: TrainConfig, state: dict[str, Any]) -> Any:
    tokenizer = load_tokenizer(config.run_dir / TOKENIZER)
    if tokenizer_hash(tokenizer) != state["tokenizer_hash"]:
        raise ValueError(
            f"{config.run_dir / TOKENIZER} is not the tokenizer of this run's checkpoints; restore it"
        )
    data = prepare_data(config, tokenizer=tokenizer)
    if data.manifest != state["manifest"]:
        raise ValueError(
            f"the text has changed since the run in {config.run_dir} began (manifest "
            f"{data.manifest[:16]}, then {state['manifest'][:16]}); restore it, or choose another --run-dir"
        )
    return data


def _stored_config(path: Path, state: dict[str, Any]) -> TrainConfig:
    if (written := state.get("format")) != FORMAT:
        raise ValueError(
            f"{path} has format {written}, this version of the package reads {FORMAT}; use the version that "
            "wrote it, or --resume never"
        )
    try:
        return TrainConfig.from_json(state["config"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: its configuration cannot be read ({error}); use --resume never") from error


def _readable(run_dir: Path, *, set_aside: bool = False) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Checkpoints whose files match their checksums, newest first; the others are named."""
    for path in reversed(checkpoint.list_checkpoints(run_dir / "checkpoints")):
        try:
            state = checkpoint.read_state(path)
        except DamagedCheckpoint as error:
            if set_aside:
                _set_aside(path, error)
            else:
                _warn_damaged(error)
            continue
        yield path, state


def _set_aside(path: Path, error: DamagedCheckpoint) -> None:
    """Renames a damaged checkpoint, so that it does not count among those kept."""
    _warn_damaged(error)
    aside = path.with_name(path.name + ".damaged")
    shutil.rmtree(aside, ignore_errors=True)  # the same step may be damaged twice
    path.rename(aside)


def _warn_damaged(error: DamagedCheckpoint) -> None:
    print(f"damaged checkpoint: {error}; using the one before", file=sys.stderr)


def _say_start(trainer: Trainer) -> None:
    config, size = trainer.config, trainer.size
    print(describe_config(config))
    print(
        f"model: {size.total / 1e6:.2f} M parameters, {size.active / 1e6:.2f} M active in a token's pass, "
        f"{size.flops_per_token / 1e6:.1f} MFLOP a trained token; precision {config.precision}"
    )
    if (world := trainer.world).size > 1:
        copies = f"{world.replicas} cop{'ies' if world.replicas > 1 else 'y'}"
        print(
            f"processes: {world.size}, routed experts of a layer over {world.ep}, {copies}; "
            f"all else sharded over {world.size} (ZeRO-1)"
        )
    cuda = "in use" if trainer.world.device.type == "cuda" else "not in use"
    print(f"kernels: CPU tier {ops.cpu_capability()}, {threads()}; CUDA {cuda}")
    for fallback in slow_fallbacks(ops.cpu_capability(), _native.host_capability(), config.precision):
        print(f"SLOW: {fallback}")
    print(f"data: {describe_corpus(trainer.data.corpus)}")
    for notice in trainer.data.corpus.notices:
        print(f"  {notice}")
    print(
        f"tokenizer: {trainer.data.tokenizer.get_vocab_size()} tokens, "
        f"{trainer.data.bytes_per_token:.2f} bytes a token, sha256 {trainer.data.tokenizer_hash[:16]}"
    )
    print(f"run: {trainer.schedules.total:,} tokens, written to {config.run_dir}", flush=True)


def _say_interrupted(trainer: Trainer, outcome: Outcome, command: Sequence[str]) -> None:
    if outcome.saved:
        print(f"interrupted after step {trainer.step}, which is saved; to continue: {_again(command)}")
    else:
        print(f"interrupted after step {trainer.step}, which could not be saved", file=sys.stderr)


def _say_end(trainer: Trainer, outcome: Outcome, command: Sequence[str]) -> None:
    config, data, row = trainer.config, trainer.data, outcome.row
    prompt = next((prompt for prompt in data.prompts if prompt.isprintable()), "The ")
    ours = row.get("val_bits_per_byte") or bits_per_byte(trainer.model, data, trainer.world)
    zlib = data.corpus.zlib_bits_per_byte()
    rate = trainer.tokens / trainer.seconds if trainer.seconds else 0.0
    tokens, run = 2 * max(trainer.schedules.total, trainer.tokens), shlex.quote(str(config.run_dir))
    acceptance = (
        "" if row.get("mtp_acceptance") is None else f", MTP acceptance {100 * row['mtp_acceptance']:.1f} %"
    )
    print(
        f"\nvalidation      {ours:.4f} bits per byte; zlib -9 on the same text {zlib:.4f}; ratio "
        f"{ours / zlib:.3f}\n"
        f"speed           {rate:,.0f} tokens/s over {clock(trainer.seconds)}; peak memory "
        f"{peak_memory() / 2**20:,.0f} MiB\n"
        f"last step       MaxVio {row['max_vio']:.2f}{acceptance}\n"
        f"sample          {sample(trainer.model, data, data.prompts[0]) if data.prompts else '-'}\n"
        f"to continue     {_again(command, '--tokens', '--minutes')} --tokens {tokens}\n"
        f"to generate     deepseek-ext generate {run} --prompt {shlex.quote(prompt)}\n"
        f"to evaluate     deepseek-ext eval {run}\n"
        f"to draw         deepseek-ext plot {run}\n"
        f"to export       deepseek-ext export-hf {run} {shlex.quote(str(config.run_dir / 'hf'))}",
        flush=True,
    )


def _again(command: Sequence[str], *without: str) -> str:
    """The command line that goes on with a run: without --resume and the other flags named."""
    dropped = ("--resume", *without)
    kept: list[str] = []
    words = iter(command)
    for word in words:
        if word in dropped:
            next(words, None)
        elif word.split("=", 1)[0] not in dropped:
            kept.append(word)
    return shlex.join(kept)
