"""The command line, `deepseek-ext` or `python -m deepseek_ext`; `_COMMANDS` lists what it can do."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import torch
import tyro
from tokenizers import Tokenizer

from . import __version__, _native, ops
from .cli_arguments import parse
from .generate import generate
from .hf import load_hf, no_such_folder, save_hf
from .model import DeepseekV3
from .nn.linear import Precision
from .parallel.world import is_main_process, tell_launcher
from .plot import PlotOptions, plot
from .reproduce import ReproduceOptions, reproduce
from .reproduce.compare import CompareOptions, compare
from .train import TrainConfig, load_run, recipes, run
from .train.data import bits_per_byte, prepare_data
from .train.environment import threads
from .train.session import stored_config, stored_manifest
from .train.tokenizer import eos_id, load_tokenizer
from .train.trainer import RunStopped

T = TypeVar("T")


@dataclass(kw_only=True, slots=True)
class InfoOptions:
    """Says versions, build, and which kernels run here."""


@dataclass(kw_only=True, slots=True)
class GenerateOptions:
    """Continues a prompt with the newest checkpoint of a run, or with a Hugging Face checkpoint."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory, one of its checkpoints, or a Hugging Face folder with its tokenizer.json."""
    prompt: str
    """Text to continue."""
    max_new_tokens: int = 128
    """Tokens to add at most."""
    temperature: float = 0.0
    """0 takes the likeliest token each time."""
    seed: int = 0
    """Of the draws at a temperature above 0."""
    precision: Precision | None = None
    """Arithmetic of a Hugging Face checkpoint, by default bf16; a run keeps the one it was trained in."""
    ema: bool = False
    """Use the moving average of the weights, of a run trained with --ema-decay."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"--max-new-tokens must be positive, got {self.max_new_tokens}")
        if not self.temperature >= 0:
            raise ValueError(f"--temperature must not be negative, got {self.temperature}; 0 is greedy")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed must be from 0 to 2^63 - 1, got {self.seed}")
        if not self.prompt:
            raise ValueError("--prompt must not be empty; give some text to continue")


@dataclass(kw_only=True, slots=True)
class ExportOptions:
    """Writes a run's model and tokenizer as a Hugging Face checkpoint."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory, whose newest checkpoint is taken, or one of its checkpoints."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """A folder that is new or empty."""
    dtype: Literal["bfloat16", "float32", "fp8"] = "bfloat16"
    """How weights are stored; fp8 is E4M3 with a scale for each 128x128 block, as the released models are."""
    power_of_2: bool = False
    """Round the scales of fp8 up to powers of two (scale_fmt ue8m0)."""
    mtp: bool = True
    """Write the multi-token prediction modules too; transformers reports them as unexpected."""
    max_shard_size: int = 5_000_000_000
    """Bytes of one file at most."""
    ema: bool = False
    """Write the moving average of the weights, of a run trained with --ema-decay."""


@dataclass(kw_only=True, slots=True)
class EvalOptions:
    """Validation bits per byte of the newest checkpoint of a run, on the run's held-out text."""

    run_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    ema: bool = False
    """Use the moving average of the weights, of a run trained with --ema-decay."""


@dataclass(kw_only=True, slots=True)
class ExtendOptions:
    """`deepseek-ext extend RUN`: trains a run on in longer sequences, with YaRN, from its newest weights.

    Every flag of train may follow; what is not given is as in RUN, or as in the paper's second phase.
    """

    seq_len: int | None = None
    """Tokens of a sequence; None: four times those of RUN."""
    rope_factor: float | None = None
    """How much longer the context becomes than RUN's was at first; None: just what --seq-len needs."""


class Command(NamedTuple):
    """One line of the table of commands."""

    name: str
    summary: str
    run: Callable[[str, list[str]], int]
    """Given the words that started it, like "deepseek-ext NAME", and its arguments, returns the exit code."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 2, after one line on stderr, for a user's error."""
    _accept_any_text()
    name, *rest = [*(sys.argv[1:] if args is None else args)] or [""]
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    if name == "--version":
        print(f"deepseek-ext {__version__}")
        return 0
    commands = {command.name: command for command in _COMMANDS}
    if name in commands:
        launcher = _launcher(rest, "-m")
        program = f"{launcher} deepseek_ext {name}" if launcher else f"deepseek-ext {name}"
        return _one_line_errors(program, lambda: commands[name].run(program, rest))
    if name:
        close = get_close_matches(name, commands, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        print(f"deepseek-ext: no command is called {name!r}{hint}", file=sys.stderr)
    print(_usage(), file=sys.stderr)
    return 2


def _usage() -> str:
    width = max(len(command.name) for command in _COMMANDS)
    lines = [f"  {command.name:{width}}  {command.summary}" for command in _COMMANDS]
    names = ",".join(command.name for command in _COMMANDS)
    more = (
        "`deepseek-ext COMMAND --help` lists what a command takes, `deepseek-ext --version` names the version"
    )
    return "\n".join([f"usage: deepseek-ext {{{names}}} ...", *lines, more])


def train(recipe: TrainConfig, args: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """Trains `recipe`, every field of which is a command-line flag; returns the exit code.

    args: the flags, by default those of the process. program: how the process was started, for the line that
    says how to continue.
    """
    given = list(sys.argv[1:] if args is None else args)
    program = program or f"{_launcher(given) or 'python'} {shlex.quote(sys.argv[0])}"

    def go() -> int:
        for word, following in pairwise([*given, "--"]):
            if word == "--data" and following.startswith("--"):  # $FILES that is not set, say
                raise ValueError("--data needs a value; leave it out to train on Python's own sources")
        config = parse(TrainConfig, given, program, default=recipe)
        return run(config, command=[*shlex.split(program), *given])

    return _one_line_errors(program, go)


def _launcher(given: Sequence[str], *options: str) -> str | None:
    """torchrun with these options, where the environment says that it started this process and others."""
    here, nodes = (int(os.environ.get(name, "1")) for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"))
    if here * nodes == 1:
        return None
    several = [f"--nnodes {nodes} ..."] if nodes > 1 else []
    # Python 3.11 looks for torchrun's own flags behind the script too, where --log could be several of them.
    apart = ["--"] if any(word.partition("=")[0] == "--log" for word in given) else []
    return " ".join([f"torchrun --nproc-per-node {here}", *several, *options, *apart])


def _extend(program: str, args: list[str]) -> int:
    """Reads what the recipe of the second phase depends on, and hands the other flags to train."""
    if args[:1] in (["-h"], ["--help"]):
        parse(ExtendOptions, args[:1], program)  # shows it and leaves
    if not args or args[0].startswith("-"):
        raise ValueError(f"name the run first: {program} RUN --seq-len N, and then any flag of train")
    parsed: Any = parse(ExtendOptions, args[1:], program, return_unknown_args=True)
    options, rest = parsed
    folder = Path(args[0])
    recipe = recipes.extended(stored_config(folder), seq_len=options.seq_len, rope_factor=options.rope_factor)
    recipe = replace(recipe, init_from=folder)
    flags = [] if options.seq_len is None else ["--seq-len", str(options.seq_len)]
    flags += [] if options.rope_factor is None else ["--rope-factor", str(options.rope_factor)]
    return train(recipe, [*flags, *rest], program=f"{program} {shlex.quote(args[0])}")


def _info(_: InfoOptions) -> int:
    build = _native.build_info()
    print(f"deepseek-ext {__version__}, built with {build['compiler']}, C++ {build['standard']}")
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}, {threads()}")
    print(f"CPU tier in use {ops.cpu_capability()}, this CPU has {_native.host_capability()}")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    built = torch._C._dispatch_has_kernel_for_dispatch_key("deepseek_ext::gemm", "CUDA")
    print(f"CUDA devices: {', '.join(names) or 'none'}; CUDA kernels {'built' if built else 'not built'}")
    return 0


def _generate(options: GenerateOptions) -> int:
    model, tokenizer = _load(options.run_dir, options.precision, options.ema)
    print(
        options.prompt
        + generate(
            model,
            tokenizer,
            options.prompt,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            seed=options.seed,
            stop_token=eos_id(tokenizer),
        )
    )
    return 0


def _load(path: Path, precision: Precision | None, average: bool) -> tuple[DeepseekV3, Tokenizer]:
    """The model and tokenizer of a run, of a checkpoint of one, or of a Hugging Face checkpoint."""
    if not path.is_dir():
        raise no_such_folder(path, "a run or a Hugging Face checkpoint")
    if (path / "config.json").is_file() or any(path.glob("*.safetensors")):
        if not (path / "tokenizer.json").is_file():
            raise ValueError(f"{path} has no tokenizer.json; put there the one that came with the checkpoint")
        if average:
            raise ValueError(f"--ema: {path} is a Hugging Face checkpoint, which holds one set of weights")
        return load_hf(path, precision or "bf16"), load_tokenizer(path / "tokenizer.json")
    if precision is not None:
        raise ValueError(
            f"--precision {precision}: {path} has no config.json, so it is no Hugging Face checkpoint, and a "
            "run keeps the precision that it was trained in; leave --precision out"
        )
    model, tokenizer, _ = load_run(path, average=average)
    return model, tokenizer


def _evaluate(options: EvalOptions) -> int:
    model, tokenizer, config = load_run(options.run_dir, average=options.ema)
    data = prepare_data(config, tokenizer=tokenizer)
    if data.manifest != (before := stored_manifest(options.run_dir)):
        print(
            f"the text has changed since the run began (manifest {data.manifest[:16]}, then {before[:16]}): "
            "the score compares with none of the run's, and what is held out now may have been trained on",
            file=sys.stderr,
        )
    score, zlib = bits_per_byte(model, data), data.corpus.zlib_bits_per_byte()
    print(
        f"validation {score:.4f} bits per byte; zlib -9 on the same text {zlib:.4f}; ratio {score / zlib:.3f}"
    )
    return 0


def _export(options: ExportOptions) -> int:
    model, tokenizer, _ = load_run(options.source, average=options.ema)
    try:
        save_hf(
            model,
            options.out,
            options.dtype,
            options.mtp,
            power_of_2=options.power_of_2,
            max_shard_size=options.max_shard_size,
            tokenizer=tokenizer,
            eos_token_id=eos_id(tokenizer),
        )
    except OSError as error:
        raise ValueError(f"{options.out} cannot be written: {error}") from error
    size = sum(file.stat().st_size for file in options.out.iterdir())
    readers = (
        "reads it; transformers needs accelerate for it, and sides that are multiples of 128"
        if options.dtype == "fp8"
        else "and transformers read it"
    )
    print(
        f"wrote {options.out}: {size / 1e6:,.1f} MB in {options.dtype}; "
        f'deepseek_ext.load_hf("{options.out}") {readers}'
    )
    return 0


def _plot(options: PlotOptions) -> int:
    print(f"wrote {plot(options)}")
    return 0


def _parsed(kind: type[T], action: Callable[[T], int]) -> Callable[[str, list[str]], int]:
    """A command whose arguments are the fields of a dataclass."""
    return lambda program, args: action(parse(kind, args, program))


def _one_line_errors(program: str, action: Callable[[], int]) -> int:
    _accept_any_text()
    try:
        return action()
    except ValueError as error:  # one that only one of several processes has is RunStopped
        return _failed(2, program, " ".join(str(error).split()), say=is_main_process())
    except PermissionError as error:
        where = f"{error.filename} cannot be opened" if error.filename else "not allowed"
        return _failed(2, program, f"{where} ({error.strerror}); check the path and its permissions")
    except (RunStopped, OSError) as error:  # a disk that fails, say, where nothing could go on without it
        return _failed(1, program, str(error))
    except KeyboardInterrupt:
        print(f"{program}: stopped at once; what the last checkpoint holds is kept", file=sys.stderr)
        return 130


def _failed(code: int, program: str, why: str, *, say: bool = True) -> int:
    tell_launcher(why)
    if say:
        print(f"{program}: {why}", file=sys.stderr)
    return code


def _accept_any_text() -> None:
    """Lets no character that the terminal cannot show, and no stream that was closed, end a command."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 -- for the life of the process
        elif hasattr(stream, "reconfigure") and not isinstance(stream, _UntilClosed):
            stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, _UntilClosed(stream))


class _UntilClosed:
    """A stream whose reader may go away (`| head`): what is written from then on goes nowhere."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._leaving():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._leaving():
            self._stream.flush()

    @contextmanager
    def _leaving(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # which still has what it could not write
            os.close(nowhere)


_COMMANDS = (
    Command("info", "versions, build, which kernels run here", _parsed(InfoOptions, _info)),
    Command(
        "train",
        "pre-trains a model, or resumes a run",
        lambda program, args: train(TrainConfig(), args, program=program),
    ),
    Command(
        "generate",
        "continues a prompt with the model of a run or of a Hugging Face checkpoint",
        _parsed(GenerateOptions, _generate),
    ),
    Command("eval", "validation bits per byte of a run's newest checkpoint", _parsed(EvalOptions, _evaluate)),
    Command(
        "export-hf",
        "writes a run's model and tokenizer as a Hugging Face checkpoint",
        _parsed(ExportOptions, _export),
    ),
    Command("plot", "draws the curves of one run or of several", _parsed(PlotOptions, _plot)),
    Command("extend", "trains a run on in longer sequences (YaRN), from its weights", _extend),
    Command(
        "compare-precision",
        "trains one model in fp8, bf16 and fp32, and says whether FP8 costs loss",
        _parsed(CompareOptions, compare),
    ),
    Command(
        "reproduce",
        "experiments for claims of the paper, each with a figure and a pass mark",
        _parsed(ReproduceOptions, reproduce),
    ),
)
