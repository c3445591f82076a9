"""The tokenizer: lossless, the same every time, kept in the cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deepseek_ext.train import tokenizer as tok
from deepseek_ext.train.corpus import Document

TEXTS = ["naïve café — 東京\n", "def f(x):\n\treturn x  # <|eos|> is only text here\n", "\x00\x7f ¡¿"]
DOCUMENTS = [Document(f"{n}.txt", text * 20) for n, text in enumerate(TEXTS)]


def cached(cache: Path) -> tok.Tokenizer:
    return tok.cached_tokenizer(DOCUMENTS, 300, "manifest", cache)


def test_it_is_lossless_and_ends_documents(tmp_path: Path) -> None:
    tokenizer = cached(tmp_path)
    eos = tok.eos_id(tokenizer)
    for document, ids in zip(DOCUMENTS, tok.encode_documents(tokenizer, DOCUMENTS), strict=True):
        assert ids[-1] == eos
        assert eos not in ids[:-1]
        assert tokenizer.decode(ids[:-1].tolist()) == document.text
    assert tok.vocabulary_size(tokenizer) == 300


def test_another_process_trains_the_same_one(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from test_tokenizer import cached; cached(Path(sys.argv[1]))"
    )
    for name in ("a", "b"):
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / name), str(Path(__file__).parent)], check=True
        )
    (a,), (b,) = (list((tmp_path / name).iterdir()) for name in ("a", "b"))
    assert a.name == b.name
    assert a.read_bytes() == b.read_bytes()


def test_the_cache_is_used_and_keyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cached(tmp_path)
    tokens = tok.cached_encoding(first, DOCUMENTS, "manifest", tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("read the cache instead")

    monkeypatch.setattr(tok, "train_tokenizer", refuse)
    monkeypatch.setattr(tok, "encode_documents", refuse)
    again = cached(tmp_path)
    assert tok.tokenizer_hash(again) == tok.tokenizer_hash(first)
    for a, b in zip(tok.cached_encoding(again, DOCUMENTS, "manifest", tmp_path), tokens, strict=True):
        assert np.array_equal(a, b)
    with pytest.raises(AssertionError, match="read the cache"):
        tok.cached_tokenizer(DOCUMENTS, 300, "other text", tmp_path)
    with pytest.raises(AssertionError, match="read the cache"):
        tok.cached_encoding(again, DOCUMENTS[:2], "manifest", tmp_path)
    assert not [path for path in tmp_path.iterdir() if "tmp" in path.name]


def test_another_vocabulary_is_another_tokenizer(tmp_path: Path) -> None:
    cached(tmp_path)
    smaller = tok.cached_tokenizer(DOCUMENTS, 290, "manifest", tmp_path)
    assert smaller.get_vocab_size() <= 290 < cached(tmp_path).get_vocab_size()


def test_a_cache_that_cannot_be_written_costs_time_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    tokenizer = cached(tmp_path / "file")
    tokens = tok.cached_encoding(tokenizer, DOCUMENTS, "manifest", tmp_path / "file")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all(line.startswith(f"SLOW: {tmp_path}/file/tok") for line in said)
    assert all(line.endswith(" cannot be kept for later runs (File exists)") for line in said)
    kept = cached(tmp_path / "cache")
    assert tok.tokenizer_hash(kept) == tok.tokenizer_hash(tokenizer)
    assert tokenizer.encode_special_tokens
    for a, b in zip(tok.encode_documents(kept, DOCUMENTS), tokens, strict=True):
        assert a.tolist() == b.tolist()


def test_a_damaged_cache_is_named_and_made_anew(tmp_path: Path) -> None:
    tokenizer = cached(tmp_path)
    tokens = tok.cached_encoding(tokenizer, DOCUMENTS, "manifest", tmp_path)
    (encoding,), (vocabulary,) = tmp_path.glob("tokens-*.npz"), tmp_path.glob("tokenizer-*.json")
    content = encoding.read_bytes()
    for torn in (b"", content[: len(content) // 2], content[:200] + b"\xff" * 8 + content[208:]):
        encoding.write_bytes(torn)
        with pytest.raises(ValueError, match=f"{encoding.name}, which keeps .* is damaged .*; delete it"):
            tok.cached_encoding(tokenizer, DOCUMENTS, "manifest", tmp_path)
    encoding.unlink()
    again = tok.cached_encoding(tokenizer, DOCUMENTS, "manifest", tmp_path)
    assert [t.tolist() for t in again] == [t.tolist() for t in tokens]
    vocabulary.write_bytes(vocabulary.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{vocabulary.name} is not a tokenizer.json .*; delete or replace"):
        cached(tmp_path)
    vocabulary.unlink()
    assert tok.tokenizer_hash(cached(tmp_path)) == tok.tokenizer_hash(tokenizer)


def test_special_tokens_have_ids_that_text_never_gets(tmp_path: Path) -> None:
    tokenizer = cached(tmp_path)
    special = {tok.eos_id(tokenizer), *(tokenizer.token_to_id(name) for name in tok.FIM_NAMES[0])}
    assert len(special) == 4
    text = "".join((tok.EOS, *tok.FIM_NAMES[0]))
    assert not special & set(tokenizer.encode(text, add_special_tokens=False).ids)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.json: no such tokenizer file"):
        tok.load_tokenizer(tmp_path / "none.json")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"version": ')
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer\.json that can be read"):
        tok.load_tokenizer(path)


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tok.Tokenizer(tok.BPE({"a": 0, "b": 1}, [])).save(str(path))
    with pytest.raises(
        ValueError, match=r"tokenizer\.json: the tokenizer has no end-of-document token; add one"
    ):
        tok.load_tokenizer(path)
