"""Ready-made tokens: each format, the cut into documents, and that what they train is what text trains."""

from __future__ import annotations

import io
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_run import rows  # type: ignore[import-not-found]
from tiny_run import Flags  # type: ignore[import-not-found]

from deepseek_ext import cli
from deepseek_ext.train import TrainConfig, checkpoint
from deepseek_ext.train.corpus import is_held_out, load_corpus
from deepseek_ext.train.data import prepare_data
from deepseek_ext.train.shards import cut_documents, open_shard
from deepseek_ext.train.tokenizer import cached_tokenizer, encode_documents

IDS = [5, 6, 0, 7, 0, 0, 65535, 8]  # of a vocabulary of 65536, in which 0 ends a document


def npy(path: Path, ids: list[int], dtype: str = "<u4") -> None:
    np.save(path, np.array(ids, dtype=dtype))


def raw(path: Path, ids: list[int]) -> None:
    path.write_bytes(struct.pack(f"<{len(ids)}H", *ids))


def llmc(path: Path, ids: list[int], magic: int = 20240520, version: int = 1, code: str = "H") -> None:
    header = struct.pack("<256i", magic, version, len(ids), *[0] * 253)
    path.write_bytes(header + struct.pack(f"<{len(ids)}{code}", *ids))


def megatron(path: Path, ids: list[int]) -> None:
    path.write_bytes(struct.pack(f"<{len(ids)}i", *ids))
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 4, 1, 2) + struct.pack("<iqqq", len(ids), 0, 0, 1)
    path.with_suffix(".idx").write_bytes(index)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.npy", npy),
        ("a.npy", lambda path, ids: npy(path, ids, "<i8")),
        ("a.bin", raw),
        ("a.bin", llmc),
        ("a.bin", lambda path, ids: llmc(path, ids, 20240801, 7, "I")),
        ("a.bin", megatron),
    ],
)
def test_every_format_gives_the_same_documents(
    name: str, write: Callable[[Path, list[int]], None], tmp_path: Path
) -> None:
    write(tmp_path / name, IDS)
    (source,) = load_corpus([str(tmp_path)]).sources  # an index in the folder is no text
    (shard,) = source.shards
    assert shard.name == name
    assert shard.tokens.tolist() == IDS
    assert not shard.tokens.flags.writeable
    # The empty document is dropped, and the last one gets its end.
    documents = [d.tolist() for d in cut_documents(shard, 0, 65536)]
    assert documents == [[5, 6, 0], [7, 0], [65535, 8, 0]]


def test_documents_are_views_of_the_file(tmp_path: Path) -> None:
    npy(tmp_path / "a.npy", [1, 2, 0, 3, 0])
    shard = open_shard(tmp_path / "a.npy", "a.npy")
    assert all(np.shares_memory(d, shard.tokens) for d in cut_documents(shard, 0, 4))


def test_a_changed_token_changes_the_manifest(tmp_path: Path) -> None:
    hashes = set()
    for ids, dtype in (([1, 2, 0], "<u2"), ([1, 3, 0], "<u2"), ([1, 2, 0], "<u4")):
        npy(tmp_path / "a.npy", ids, dtype)
        hashes.add(load_corpus([str(tmp_path / "a.npy")]).manifest_hash())
    assert len(hashes) == 3


class Planted:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("a pickle was loaded",)


def write_pickles(path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    path.write_bytes(header.getvalue() + pickle.dumps(Planted()))


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.npy", write_pickles, "Python objects in dtype"),
        ("a.npy", lambda p: p.write_bytes(pickle.dumps(Planted())), "cannot be read as tokens"),
        ("a.npy", lambda p: p.write_bytes(b""), "cannot be read as tokens"),
        ("a.npy", lambda p: np.save(p, np.zeros(3)), r"wanted an array of integers .*, found float64 \[3\]"),
        ("a.npy", lambda p: np.save(p, np.zeros((2, 2), int)), r"one dimension, found int64 \[2, 2\]"),
        ("a.npy", lambda p: np.save(p, np.zeros(0, int)), "holds no tokens; leave it out"),
        ("a.bin", lambda p: p.write_bytes(b""), "holds no tokens; leave it out"),
        ("a.bin", lambda p: p.write_bytes(b"abc"), "3 bytes are not whole tokens of 2 bytes"),
        (
            "a.bin",
            lambda p: (llmc(p, IDS), p.write_bytes(p.read_bytes()[:-2])),
            "14 bytes are not 8 tokens of 2 bytes",
        ),
        (
            "a.bin",
            lambda p: (raw(p, IDS), p.with_suffix(".idx").write_bytes(b"index")),
            "a.idx beside it is no index of Megatron-LM's",
        ),
        ("a.npz", lambda p: p.write_bytes(b"x"), r"\.npz files are not read; give text, \.jsonl, or tokens"),
    ],
)
def test_what_is_no_token_file_is_named(
    name: str, write: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message) as raised:
        load_corpus([str(tmp_path / name)])
    assert str(raised.value).startswith(str(tmp_path / name))


@pytest.fixture
def tokenised(text_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The training text as a file of tokens, and the tokenizer that made it."""
    corpus = load_corpus([str(text_folder)])
    tokenizer = cached_tokenizer(corpus.train, 384, "manifest", tmp_path / "cache")
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    # A name by whose hash some of the documents are held out.
    names = (f"text{n}.bin" for n in range(100))
    name = next(n for n in names if any(is_held_out(f"{n}:{i}") for i in range(len(corpus.train))))
    raw(tmp_path / name, np.concatenate(encode_documents(tokenizer, corpus.train)).tolist())
    return tmp_path / name, path


def test_a_run_on_tokens_scores_bits_per_byte_of_their_text(
    tokenised: tuple[Path, Path], text_folder: Path, flags: Flags, tmp_path: Path
) -> None:
    tokens, tokenizer = tokenised
    args = flags(data=tokens, tokenizer=tokenizer, checkpoint_every=4)
    assert cli.train(TrainConfig(), args, program="test") == 0
    run = tmp_path / "run"
    before = rows(run)
    for path in checkpoint.list_checkpoints(run / "checkpoints")[1:]:
        shutil.rmtree(path)
    assert cli.train(TrainConfig(), args, program="test") == 0
    assert rows(run) == before
    assert rows(run)[-1]["loss"] < rows(run)[0]["loss"] - 0.5
    data = prepare_data(TrainConfig(data=(str(tokens),), tokenizer=tokenizer, seq_len=32, run_dir=run))
    texts = {document.text for document in load_corpus([str(text_folder)]).train}
    assert data.corpus.manifest_hash() == data.manifest
    held_out = [document.text for document in data.corpus.held_out]
    assert held_out
    assert set(held_out) <= texts
    assert data.held_out_bytes == sum(len(text.encode()) for text in held_out)
    assert int((data.validation[1] == data.eos).sum()) == len(held_out)
    # A held-out document is in no sequence: what is left to train on is all but it.
    trained = data.batches.sources[0].tokens_per_epoch
    assert trained == len(np.fromfile(tokens, "<u2")) - int((data.validation[1] >= 0).sum())


def test_text_and_tokens_mix_by_weight(
    tokenised: tuple[Path, Path], text_folder: Path, flags: Flags, tmp_path: Path
) -> None:
    tokens, tokenizer = tokenised
    config = TrainConfig(
        data=(f"{tokens}=1", f"{text_folder}=3"), tokenizer=tokenizer, seq_len=32, run_dir=tmp_path / "run"
    )
    data = prepare_data(config)
    data.batches.batch(40)
    assert data.batches.drawn == [10, 30]
    pool = prepare_data(
        TrainConfig(data=(str(tokens), str(text_folder)), tokenizer=tokenizer, seq_len=32, fim_rate=0.5)
    )
    assert len(pool.corpus.sources) == 1
    assert len(pool.corpus.sources[0].shards) == 1
    pool.batches.batch(20)


def test_a_file_of_one_document_gives_up_its_end(tokenised: tuple[Path, Path], tmp_path: Path) -> None:
    _, tokenizer = tokenised
    npy(tmp_path / "one.npy", [40] * 640)
    data = prepare_data(
        TrainConfig(
            data=(str(tmp_path / "one.npy"),), tokenizer=tokenizer, seq_len=32, run_dir=tmp_path / "run"
        )
    )
    assert data.batches.sources[0].tokens_per_epoch == 621
    assert int((data.validation[1] == 40).sum()) == 20
    assert "one.npy: too few documents to hold some out by hash" in data.corpus.notices[0]


@pytest.mark.parametrize(
    ("ids", "changes", "message"),
    [
        ([50, 384, 0], {}, "holds token 384, the tokenizer has ids 0 to "),
        ([0, 0, 0], {}, "holds nothing but ends of documents; leave it out of --data"),
        ([50, 60, 0] * 40, {"fim_rate": 0.1}, "--fim-rate rearranges text, and "),
        ([50, 60, 0] * 40, {"tokenizer": None}, "holds tokens, and which text they stand for is not in it"),
        ([50, 60, 0] * 40, {"vocab_size": 128}, "the model's vocabulary 128; write --vocab-size 384"),
        ([50, 60, 0] * 4, {}, "tokens to train on, less than one sequence of 32; give more text"),
    ],
)
def test_tokens_that_do_not_fit_are_one_line(
    ids: list[int],
    changes: dict[str, object],
    message: str,
    tokenised: tuple[Path, Path],
    flags: Flags,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    npy(tmp_path / "a.npy", ids)
    settings = {"data": tmp_path / "a.npy", "tokenizer": tokenised[1], **changes}
    args = flags(**{name: value for name, value in settings.items() if value is not None})
    assert cli.train(TrainConfig(), args, program="test") == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
