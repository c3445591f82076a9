"""What can be wrong with the text of a run: one line on stderr that names it, and exit code 2."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
from tiny_run import Flags  # type: ignore[import-not-found]

from deepseek_ext import cli
from deepseek_ext.train import TrainConfig

Files = dict[str, bytes]


@pytest.mark.parametrize(
    ("files", "data", "message"),
    [
        (
            {"a.txt": b"good", "b.txt": b"caf\xe9 noir"},
            ".",
            "b.txt is not UTF-8 (byte 3); convert it, for instance with iconv, or choose files by a glob",
        ),
        (
            {"a.jsonl": b'{"text": "caf\xe9"}\n'},
            "a.jsonl",
            "a.jsonl is not UTF-8 (byte 13); convert it",
        ),
        ({"a.txt": b""}, "a.txt", "a.txt is empty; leave it out of --data"),
        ({"a.txt": b"", "b.txt": b" \n\n"}, ".", ": no text in it; name files with text"),
        ({"a.jsonl": b'{"text": ""}\n'}, ".", ": no text in it; name files with text"),
        ({}, ".", ": no files there; name a folder with text or .jsonl files"),
        ({}, "*.txt", "*.txt: no files there; name a folder with text or .jsonl files"),
        ({}, "a.txt", "a.txt: no such file or folder; check the path, or quote a glob: 'folder/**/*.txt'"),
        (
            {"a.txt": b"a few words", "b.txt": b"and a few more"},
            ".",
            "tokens to train on, less than one sequence of 32; give more text with --data, or a smaller "
            "--seq-len",
        ),
        (
            {"a.jsonl": b'{"text": "one"}\n{"body": "two"}\n'},
            "a.jsonl",
            'a.jsonl, line 2: wanted a JSON object with the field "text"; correct or remove the line',
        ),
        (
            {"a.jsonl": b'{"text": "\\ud83d\\ude00 is whole"}\n{"text": "half \\ud83d"}\n'},
            "a.jsonl",
            r'a.jsonl, line 2: "text" has half a surrogate pair (\ud800 to \udfff), which is no character',
        ),
        (
            {"a.jsonl": b"[" * 10**5 + b"\n"},
            "a.jsonl",
            'a.jsonl, line 1: wanted a JSON object with the field "text"; correct or remove the line',
        ),
        ({}, 300 * "x", "cannot be read (File name too long); check the path and its permissions"),
    ],
)
def test_text_that_cannot_be_used_is_named(
    files: Files, data: str, message: str, flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    assert cli.train(TrainConfig(), flags(data=folder / data), program="test") == 2
    err = capsys.readouterr().err
    assert message in err
    assert str(folder) in err or "tokens to train on" in err
    assert err.count("\n") == 1
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_file_whose_name_is_no_text(
    flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with open(os.fsencode(folder) + b"/caf\xe9.txt", "w") as file:
        file.write("a few words")
    assert cli.train(TrainConfig(), flags(data=folder), program="test") == 2
    assert "the file's name is not UTF-8; rename it" in capsys.readouterr().err


def test_a_pipe_is_no_file(flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert cli.train(TrainConfig(), flags(data=tmp_path / "pipe"), program="test") == 2
    assert f"--data {tmp_path}/pipe: no regular file; write what it yields" in capsys.readouterr().err


def test_an_empty_path_is_not_the_current_folder(flags: Flags, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.train(TrainConfig(), flags(data=""), program="test") == 2
    assert "--data has an empty path; name a file or folder" in capsys.readouterr().err


@pytest.mark.parametrize("prompt", ["", "the value " * 2000])
def test_a_prompt_that_no_sample_can_continue_is_refused_before_the_first_step(
    prompt: str, flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.train(TrainConfig(), flags(prompts=("the ", prompt)), program="test") == 2
    err = capsys.readouterr().err
    assert " tokens, and a sample needs 1 to 4048; write another, or --prompts with none" in err
    assert len(err) < 300
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_prompt_in_another_encoding(flags: Flags, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.train(TrainConfig(), flags(prompts="caf\udce9"), program="test") == 2
    assert capsys.readouterr().err == "test: --prompts 'caf\\udce9' is no text; write it in UTF-8\n"


def test_a_run_inside_its_own_text_goes_on(
    flags: Flags, text_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a run writes is no text, or nothing could be resumed; nor is what other runs write."""
    data = tmp_path / "data"
    shutil.copytree(text_folder, data)
    for tokens, run in ((256, "a"), (512, "a"), (256, "b")):
        args = flags(data=data, run_dir=data / "runs" / run, tokens=tokens, prompts=())
        assert cli.train(TrainConfig(), args, program="test") == 0
    captured = capsys.readouterr()
    assert "step-00000002: step 2, 256 tokens seen" in captured.out
    assert f"{data}/runs/a is a run directory; left out of the text" in captured.out
    assert len(set(re.findall("manifest ([0-9a-f]{16})", captured.out))) == 1
    # A run that is named is text like any other.
    args = flags(data=data / "runs" / "a" / "metrics.jsonl", run_dir=tmp_path / "c")
    assert cli.train(TrainConfig(), args, program="test") == 2
    assert 'metrics.jsonl, line 1: wanted a JSON object with the field "text"' in capsys.readouterr().err


def test_one_source_of_a_mixture_is_too_short(
    text_folder: Path, flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short.txt").write_text("a few words")
    args = flags(data=f"{text_folder}=1")
    at = args.index("--data") + 2
    args[at:at] = [f"{tmp_path}/short.txt=2"]
    assert cli.train(TrainConfig(), args, program="test") == 2
    assert f"{tmp_path}/short.txt has " in capsys.readouterr().err


def test_a_tokenizer_without_the_marks_of_fim(
    flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel

    tokenizer = Tokenizer(BPE({letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    path = tmp_path / "plain.json"
    tokenizer.save(str(path))
    assert cli.train(TrainConfig(), flags(tokenizer=path, fim_rate=0.1), program="test") == 2
    err = capsys.readouterr().err
    assert "--fim-rate needs a tokenizer with the tokens <|fim_begin|>, <|fim_hole|>, <|fim_end|>" in err
    assert "or write --fim-rate 0" in err
