"""The command line: what a user can put right ends in one line on stderr and exit code 2."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import ROOT, Flags, start_example  # type: ignore[import-not-found]

from deepseek_ext import cli
from deepseek_ext.train import TrainConfig
from deepseek_ext.train.corpus import load_corpus
from deepseek_ext.train.tokenizer import train_tokenizer


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.endswith("\n")
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("", "no command given; choose from info, train, generate, eval"),
        ("fly", "no command is called 'fly'; choose from info, train, generate, eval"),
        ("info now", "info takes no arguments, got now"),
        ("train --wings 2", "Unrecognized options"),
        ("train --depth two", "two"),
        ("train --depth 0", "--depth must be positive, got 0"),
        ("train --minutes -1", "--minutes must be positive, got -1"),
        ("train --seed -1", "--seed must not be negative, got -1"),
        ("train --precision fp4", "fp4"),
        ("train --resume maybe", "maybe"),
        ("train --experts 10", "--experts must be a multiple of 4, at least 8"),
        ("train --seq-len 1", "--seq-len 1 leaves nothing to predict for --mtp-depth 1"),
        (
            "train --sequences 8 --micro-sequences 3",
            "--sequences 8 must be a multiple of --micro-sequences 3",
        ),
        ("generate", "Missing from deepseek-ext generate: RUN"),
        ("generate nowhere --prompt x", "nowhere holds no checkpoint that can be read"),
        ("generate nowhere --prompt x --max-new-tokens 0", "--max-new-tokens must be positive"),
        ("eval nowhere", "nowhere holds no checkpoint that can be read"),
    ],
)
def test_a_users_error_is_one_line(
    args: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(shlex.split(args)) == 2
    assert message in one_line(capsys)
    assert not list(tmp_path.iterdir())


def test_text_that_does_not_fit_is_one_line(
    flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short.txt").write_text("too short\n")
    (tmp_path / "file").write_text("")
    cases = {
        "less than one sequence of 1000": flags(data=tmp_path / "short.txt", seq_len=1000),
        "no such file or folder": flags(data=tmp_path / "none.txt"),
        "--run-dir": flags(run_dir=tmp_path / "file" / "run"),
        "no such tokenizer file": flags(tokenizer=tmp_path / "none.json"),
    }
    for message, args in cases.items():
        assert cli.train(TrainConfig(), args, program="test") == 2
        assert message in one_line(capsys)


def test_a_tokenizer_too_large_for_the_model_is_named(
    flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str], text_folder: Path
) -> None:
    path = tmp_path / "large.json"
    train_tokenizer(load_corpus([str(text_folder)]).train, 400).save(str(path))
    assert cli.train(TrainConfig(), flags(tokenizer=path, vocab_size=300), program="test") == 2
    line = one_line(capsys)
    assert f"{path} has " in line
    assert "tokens, the model's vocabulary 300; write --vocab-size 384" in line


def test_the_example_and_the_command_train_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from pretrain import recipe  # type: ignore[import-not-found]

    assert recipe() == TrainConfig()


def test_the_fixed_flags_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "--help"])
    assert stopped.value.code == 0
    help_text = capsys.readouterr().out
    for name in [
        "depth",
        "tokens",
        "minutes",
        "data",
        "precision",
        "run-dir",
        "checkpoint-every",
        "resume",
        "seed",
    ]:
        assert f"--{name} " in help_text


def test_info_says_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for word in ["torch", "CPU tier in use", "quantize", "gemm", "swiglu", "routing", "permute", "optimizer"]:
        assert word in out


def test_python_m_is_the_command() -> None:
    command = [sys.executable, "-m", "deepseek_ext", "fly"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert (
        done.stderr == "deepseek-ext: no command is called 'fly'; choose from info, train, generate, eval\n"
    )


def test_the_example_refuses_in_one_line(flags: Flags) -> None:
    process = start_example(flags(data="/nowhere.txt"))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert err.startswith(f"python {ROOT}/examples/pretrain.py: --data /nowhere.txt: no such file or folder;")
    assert err.count("\n") == 1
