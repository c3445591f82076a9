"""Terminals that show ASCII alone, streams that were closed, names that a shell would take apart."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import ROOT, Flags  # type: ignore[import-not-found]

from deepseek_ext import cli
from deepseek_ext.train import TrainConfig, checkpoint


def deepseek_ext(*args: object, **environment: str) -> bytes:
    """What the command prints, in a process of its own with these variables."""
    done = subprocess.run(
        [sys.executable, "-m", "deepseek_ext", *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_what_a_terminal_cannot_show_stops_nothing(flags: Flags, tmp_path: Path) -> None:
    said = deepseek_ext("train", *flags(prompts="weiß", tokens=256), PYTHONIOENCODING="ascii")
    assert b"'wei\\xdf" in said
    asked = deepseek_ext("generate", tmp_path / "run", "--prompt", "weiß", PYTHONIOENCODING="ascii")
    assert asked.startswith(b"wei\\xdf")


def test_files_are_utf8_whatever_the_locale(flags: Flags, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes("Das Weiß von 中文 und mehr.\n".encode() * 100)
    args = flags(data=tmp_path / "text.txt")
    for tokens in (256, 512):  # a second time, to read what the first wrote
        deepseek_ext("train", *args, "--tokens", tokens, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert "ŀ" in (tmp_path / "run" / "tokenizer.json").read_text(encoding="utf-8")


def test_closed_streams_stop_no_run(flags: Flags, tmp_path: Path) -> None:
    command = shlex.join([sys.executable, "-m", "deepseek_ext", "train", *flags(tokens=256)])
    done = subprocess.run(
        ["bash", "-c", f"{command} >&- 2>&-"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0
    assert checkpoint.list_checkpoints(tmp_path / "run" / "checkpoints")[-1].name == "step-00000002"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_stops_no_run(flags: Flags, tmp_path: Path, unbuffered: str) -> None:
    """`| head -1`: all lines after it go nowhere, without a word."""
    for words, code in ((["train", *flags(tokens=256)], 0), (["train", "--help"], 0), (["nothing"], 2)):
        command = shlex.join([sys.executable, "-m", "deepseek_ext", *words])
        done = subprocess.run(
            ["bash", "-c", f"{{ {command} 2>&1; echo $? > {tmp_path}/code; }} | head -1"],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "PYTHONUNBUFFERED": unbuffered,
                "OMP_NUM_THREADS": "1",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.count("\n") == 1
        assert done.stderr == ""
        assert int((tmp_path / "code").read_text()) == code
    assert checkpoint.list_checkpoints(tmp_path / "run" / "checkpoints")[-1].name == "step-00000002"


def test_an_interrupt_while_modules_are_imported_is_one_line(tmp_path: Path) -> None:
    """In torch, which the package imports first, and in what the command line imports then."""
    for module in ("torch", "tyro"):
        folder = tmp_path / f"for {module}"
        (folder / module).mkdir(parents=True)
        (folder / module / "__init__.py").write_text("raise KeyboardInterrupt")
        done = subprocess.run(
            [sys.executable, "-m", "deepseek_ext", "info"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "deepseek-ext: stopped at once\n")


def test_the_commands_at_the_end_can_be_pasted(
    flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "my run; it's"
    assert cli.train(TrainConfig(), flags(run_dir=run, tokens=200), program="deepseek-ext train") == 0
    lines = [line.split(None, 2) for line in capsys.readouterr().out.splitlines() if line.startswith("to ")]
    commands = {name: shlex.split(rest.split(" ", 1)[1]) for _, name, rest in lines}
    assert [*commands] == ["continue", "generate", "evaluate", "draw", "export"]
    assert commands.pop("continue")[-2:] == ["--tokens", "512"]  # two steps took it to 256
    for name, words in commands.items():
        assert str(run) in words, name
    assert commands["export"][-1] == str(run / "hf")
    assert cli.main(commands["evaluate"]) == 0
