"""Where text comes from, what is held out, and what is said when it cannot be used."""

from __future__ import annotations

import hashlib
import json
import os
import sysconfig
import zlib
from pathlib import Path

import pytest

from deepseek_ext.train.corpus import describe, is_held_out, load_corpus


def test_held_out_is_the_hash_rule() -> None:
    names = [f"folder/file{n}.py" for n in range(4000)]
    for name in names[:300]:
        number = 0
        for byte in hashlib.sha256(name.encode()).digest()[:8]:
            number = 256 * number + byte
        assert is_held_out(name) == (number % 32 == 0)
    assert 80 < sum(map(is_held_out, names)) < 170


def test_the_standard_library_without_its_tests() -> None:
    corpus = load_corpus()
    names = [document.name for document in corpus.train + corpus.held_out]
    assert len(set(names)) == len(names)
    assert {"ast.py", "json/decoder.py", "pydoc_data/topics.py"} <= set(names)
    assert not [name for name in names if {"test", "tests", "site-packages"} & set(name.split("/"))]
    assert all(is_held_out(document.name) for document in corpus.held_out)
    assert not any(is_held_out(document.name) for document in corpus.train)
    root = Path(sysconfig.get_paths()["stdlib"])
    for document in corpus.held_out:
        assert (root / document.name).read_bytes() == document.text.encode()
    text = corpus.held_out_bytes()
    assert corpus.zlib_bits_per_byte() == 8 * len(zlib.compress(text, 9)) / len(text)
    assert corpus.manifest_hash()[:16] in describe(corpus)
    assert load_corpus().manifest_hash() == corpus.manifest_hash()


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_folders_globs_files_and_jsonl(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"row {n}"}) for n in range(3)]
    write(
        tmp_path,
        {"a/b/one.txt": "one", "a/two.md": "two", "a/.git/no": "no", "a/rows.jsonl": "\n".join(lines)},
    )

    def names(*data: str) -> set[str]:
        corpus = load_corpus(data)
        return {document.name for document in corpus.train + corpus.held_out}

    rows = {f"rows.jsonl:{n}" for n in (1, 2, 3)}
    assert names(f"{tmp_path}/a") == {"b/one.txt", "two.md"} | rows
    assert names(f"{tmp_path}/a/**/*.txt", f"{tmp_path}/a/two.md") == {"b/one.txt", "two.md"}
    assert names(f"{tmp_path}/a/rows.jsonl") == rows


def test_weights_make_sources_and_change_the_hash(tmp_path: Path) -> None:
    write(tmp_path, {f"{side}/{n}.txt": f"{side} {n}\n" for side in "ab" for n in range(4)})
    corpus = load_corpus([f"{tmp_path}/a=3", f"{tmp_path}/b=1"])
    assert [source.weight for source in corpus.sources] == [3.0, 1.0]
    other = load_corpus([f"{tmp_path}/a=2", f"{tmp_path}/b=1"])
    assert other.manifest_hash() != corpus.manifest_hash()
    assert len(load_corpus([f"{tmp_path}/a", f"{tmp_path}/b"]).sources) == 1


def test_the_end_of_the_longest_is_held_out_where_documents_are_few(tmp_path: Path) -> None:
    text = "".join(f"line {n}\n" for n in range(1000))
    write(tmp_path, {"only.txt": text})
    corpus = load_corpus([f"{tmp_path}/only.txt"])
    (train,), (held_out,) = corpus.train, corpus.held_out
    assert train.text + held_out.text == text
    assert held_out.text.startswith("line 9")
    assert 0.02 < len(held_out.text) / len(text) < 0.05
    assert "the last part of only.txt is held out" in corpus.notices[0]


def test_a_changed_text_changes_the_hash(tmp_path: Path) -> None:
    write(tmp_path, {f"{n}.txt": f"text {n}\n" for n in range(4)})
    before = load_corpus([str(tmp_path)]).manifest_hash()
    write(tmp_path, {"2.txt": "text 3\n"})
    assert load_corpus([str(tmp_path)]).manifest_hash() != before


def test_an_empty_file_in_a_folder_is_skipped_and_said(tmp_path: Path) -> None:
    write(tmp_path, {"full.txt": "text\n" * 100, "empty.txt": ""})
    assert f"{tmp_path}/empty.txt is empty; skipped" in load_corpus([str(tmp_path)]).notices


@pytest.mark.parametrize(
    ("files", "data", "message"),
    [
        ({"e.txt": ""}, "e.txt", r"e\.txt is empty; leave it out of --data"),
        ({"e.txt": " \n"}, ".", r"--data .*: no text in it; name files with text"),
        ({}, "none.txt", r"--data .*none\.txt: no such file or folder; check the path"),
        ({}, "*.txt", r"--data .*\*\.txt: no files there; name a folder"),
        ({"a.jsonl": '{"text": "a"}\n{"txt": 1}\n'}, "a.jsonl", r"a\.jsonl, line 2: wanted a JSON object"),
        ({"a.jsonl": '{"text": "a"}\nnot json\n'}, "a.jsonl", r"a\.jsonl, line 2: wanted a JSON object"),
        ({"a.jsonl": '{"text": 7}\n'}, "a.jsonl", r'a\.jsonl, line 1: "text" is not a string'),
        ({"a.txt": "text"}, "a.txt=-1", r"a\.txt=-1: the weight must be a positive number"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, files: dict[str, str], data: str, message: str) -> None:
    write(tmp_path, files)
    with pytest.raises(ValueError, match=message):
        load_corpus([f"{tmp_path}/{data}"])


def test_bad_utf8_is_named_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"good so far \xff and on")
    with pytest.raises(ValueError, match=r"bad\.txt is not UTF-8 \(byte 12\); convert it"):
        load_corpus([str(tmp_path)])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_forbidden_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"secret.txt": "text"})
    (tmp_path / "secret.txt").chmod(0)
    with pytest.raises(ValueError, match=r"secret\.txt cannot be read .* check its permissions"):
        load_corpus([str(tmp_path)])


def test_a_forbidden_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be left out, and nobody would know; hidden ones are left out anyway."""
    write(tmp_path, {"a.txt": "text\n" * 100, "secret/b.txt": "text", ".hidden/c.txt": "text"})
    forbidden = {str(tmp_path / ".hidden")}
    scandir = os.scandir

    def guarded(path: str) -> object:
        if str(path) in forbidden:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert len(load_corpus([str(tmp_path)]).train) == 2
    forbidden.add(str(tmp_path / "secret"))
    with pytest.raises(ValueError, match=r"/secret cannot be read \(Permission denied\); check"):
        load_corpus([str(tmp_path)])


def test_a_link_to_a_folder_is_not_followed_and_said(tmp_path: Path) -> None:
    write(tmp_path, {"data/a.txt": "text\n" * 100, "other/b.txt": "text"})
    (tmp_path / "data" / "link").symlink_to(tmp_path / "other")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "b.txt").symlink_to(tmp_path / "other" / "b.txt")
    corpus = load_corpus([f"{tmp_path}/data"])
    assert {document.name for document in corpus.train} == {"a.txt", "b.txt"}
    for name in ("link", "loop"):
        assert f"{tmp_path}/data/{name} is a link to a folder, not followed; name it too" in str(
            corpus.notices
        )


def test_weights_for_some_only_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "text", "b.txt": "text"})
    with pytest.raises(ValueError, match=r"b\.txt: the others have weights; write .*b\.txt=1"):
        load_corpus([f"{tmp_path}/a.txt=2", f"{tmp_path}/b.txt"])
