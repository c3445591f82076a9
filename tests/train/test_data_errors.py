"""What can be wrong with the text of a run: one line on stderr that names it, and exit code 2."""

from __future__ import annotations

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
