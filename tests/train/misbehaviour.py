"""What a rank does to the others, put into its process before a run begins."""

from __future__ import annotations

import math
import os
import resource
import signal
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from deepseek_ext.nn import moe
from deepseek_ext.ops.exchange import InFlight
from deepseek_ext.train.trainer import Trainer


def in_folder(folder: str) -> None:
    """Runs in that folder."""
    os.chdir(folder)


def with_small_files() -> None:
    """Can write no large file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def in_step(step: int, what: str) -> None:
    """At the beginning of a step: "KILL" or "STOP" is sent to itself, "raise" raises."""

    def act(trainer: Trainer) -> None:
        if what == "raise":
            raise ArithmeticError("the sums are off. So they are")
        os.kill(os.getpid(), getattr(signal, f"SIG{what}"))

    _before_step(step, act)


def in_layer(layer: str, first_step: int) -> None:
    """From that step on the layer's output is NaN in training."""

    def hook(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        return output * math.nan if module.training else output

    _before_step(first_step, lambda trainer: trainer.model.get_submodule(layer).register_forward_hook(hook))


def _before_step(step: int, act: Callable[[Trainer], Any]) -> None:
    undisturbed = Trainer.train_step

    def train_step(self: Trainer) -> dict[str, Any]:
        if self.step + 1 == step:
            act(self)
        return undisturbed(self)

    Trainer.train_step = train_step  # type: ignore[method-assign]


def in_save() -> None:
    """Is killed while it writes its part of the second checkpoint."""
    undisturbed = FileSystemWriter.write_data
    saves = 0

    def write_data(self: FileSystemWriter, *args: Any) -> Any:
        nonlocal saves
        saves += 1
        if saves == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return undisturbed(self, *args)

    FileSystemWriter.write_data = write_data  # type: ignore[method-assign]


def in_dispatch(calls: int) -> None:
    """Is killed with tokens on their way, in its call number `calls` of a layer of experts."""
    undisturbed = moe.dispatch_start
    seen = 0

    def start(*args: Any, **options: Any) -> InFlight:
        nonlocal seen
        seen += 1
        sent = undisturbed(*args, **options)
        if seen == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return sent

    moe.dispatch_start = start  # type: ignore[assignment]
