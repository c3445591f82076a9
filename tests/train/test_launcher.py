"""What torchrun is told, and what is told of it: without starting any process."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from tiny_run import Flags  # type: ignore[import-not-found]
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.run import get_args_parser

from deepseek_ext import cli
from deepseek_ext.parallel.world import _first_sentence
from deepseek_ext.train import TrainConfig


def test_its_summary_says_why_a_process_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["train", "--depth", "0"]) == 2
    assert capsys.readouterr().err == ""  # the first process says it
    failure = ProcessFailure(local_rank=1, pid=7, exitcode=2, error_file=str(file))
    assert "traceback : --depth must be positive, got 0\n" in str(ChildFailedError("x", {1: failure}))


def test_a_folder_that_is_gone_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "gone" / "error.json"))
    assert cli.main(["train", "--depth", "0"]) == 2


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            "[/pytorch/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:15029. This may",
            "Connection closed by peer",
        ),
        (
            "[/pytorch/gloo/transport/tcp/pair.cc:538] Read error [fe80::1]:478: Connection reset by peer",
            "Connection reset by peer",
        ),
        (
            "[/pytorch/gloo/unbound_buffer.cc:78] Timed out waiting 12000ms for recv operation to complete",
            "Timed out waiting 12000ms for recv operation to complete",
        ),
        ("tokens[3] is off. So are\nothers", "tokens[3] is off"),
        ("", "RuntimeError"),
    ],
)
def test_messages_of_gloo_are_quoted_without_places_and_addresses(message: str, said: str) -> None:
    assert _first_sentence(RuntimeError(message)) == said


def test_a_command_names_itself_as_it_was_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = "--depth must be positive, got 0\n"
    assert cli.main(["train", "--depth", "0"]) == 2
    assert capsys.readouterr().err == f"deepseek-ext train: {wrong}"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert cli.main(["train", "--depth", "0"]) == 2
    assert capsys.readouterr().err == f"torchrun --nproc-per-node 2 -m deepseek_ext train: {wrong}"


def test_it_takes_our_flags_for_ours(flags: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11's argparse looks for options behind the script too, which --log abbreviates several of."""
    parser = get_args_parser()
    for word in [f"--{field.name.replace('_', '-')}" for field in fields(TrainConfig)]:
        for given in ([word, "1"], [f"{word}=1"]):
            monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
            command = [*shlex.split(cli._launcher(given)), "train.py", *given]
            assert command[:3] == ["torchrun", "--nproc-per-node", "2"]
            parsed = parser.parse_args(command[1:])
            assert (parsed.training_script, parsed.training_script_args) == ("train.py", given)
            module = [*shlex.split(cli._launcher(given, "-m")), "deepseek_ext", "train", *given]
            parsed = parser.parse_args(module[1:])
            assert parsed.module
            assert (parsed.training_script, parsed.training_script_args) == (
                "deepseek_ext",
                ["train", *given],
            )
    if sys.version_info < (3, 12):
        with pytest.raises((SystemExit, argparse.ArgumentError)):
            parser.parse_args(["train.py", "--log", "tensorboard"])
