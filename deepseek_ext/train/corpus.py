"""Text: where documents come from, which are held out, and the hash that says two runs read the same."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import sys
import sysconfig
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from . import shards
from .folder import is_run
from .shards import Shard

HELD_OUT_SHARE = 32  # one document in 32 by its hash

# The standard library's own tests, and what is installed beside it.
_NOT_LIBRARY = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True, slots=True)
class Document:
    """One text with the name that decides its split: a path relative to its source, "/" between parts."""

    name: str
    text: str


@dataclass(slots=True)
class Source:
    """Documents drawn together, and the share of sequences that come from them."""

    name: str
    weight: float
    train: list[Document]
    held_out: list[Document]
    shards: list[Shard] = field(default_factory=list)
    """Files of ready-made tokens; split by document too, once the tokenizer says where documents end."""
    decoded: list[Document] = field(default_factory=list)
    """The text of what is held out of the shards."""


@dataclass(slots=True)
class Corpus:
    """All sources of a run, split into training and held-out documents."""

    sources: list[Source]
    notices: list[str] = field(default_factory=list)

    @property
    def held_out(self) -> list[Document]:
        return [document for source in self.sources for document in source.held_out + source.decoded]

    @property
    def train(self) -> list[Document]:
        return [document for source in self.sources for document in source.train]

    def held_out_bytes(self) -> bytes:
        """The held-out text in order: what bits per byte, ours and zlib's, are counted on."""
        return b"".join(document.text.encode() for document in self.held_out)

    def zlib_bits_per_byte(self) -> float:
        """What zlib at its strongest level needs for the held-out text, compressed as one piece."""
        text = self.held_out_bytes()
        return 8 * len(zlib.compress(text, 9)) / len(text)

    def manifest_hash(self) -> str:
        """SHA-256 over all names, splits and contents; bits per byte compare only for equal hashes."""
        digest = hashlib.sha256()
        for source in self.sources:
            digest.update(f"source {source.weight}\n".encode())
            for split, documents in (("train", source.train), ("held out", source.held_out)):
                for document in documents:
                    content = hashlib.sha256(document.text.encode()).hexdigest()
                    digest.update(f"{split}\t{document.name}\t{content}\n".encode())
            for shard in source.shards:
                digest.update(f"tokens\t{shard.name}\t{shard.digest}\n".encode())
        return digest.hexdigest()


def is_held_out(name: str) -> bool:
    """Whether a document is held out: the first 8 bytes of its name's SHA-256, as a number, divide by 32."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % HELD_OUT_SHARE == 0


def load_corpus(data: Sequence[str] = ()) -> Corpus:
    """Reads the documents of a run and splits them.

    data: PATH or PATH=WEIGHT each: a text file, a .jsonl file (one object with a "text" a line), a file of
    tokens (see `shards`), a folder, or a glob; none means the standard library's sources. Without weights all
    documents form one pool. Run directories inside a folder are no text.
    Raises ValueError, naming the file and what to do, for anything that cannot be read.
    """
    if not data:
        return Corpus([_split("standard library", 1.0, _standard_library(), [])])
    parsed = [_parse(entry) for entry in data]
    notices: list[str] = []
    weighted = [weight for _, weight in parsed if weight is not None]
    if not weighted:
        pool = [item for path, _ in parsed for item in _read(path, notices)]
        return Corpus([_split(", ".join(data), 1.0, pool, notices)], notices)
    if len(weighted) < len(parsed):
        bare = next(path for path, weight in parsed if weight is None)
        raise ValueError(f"--data {bare}: the others have weights; write {bare}=1, or give no weights at all")
    sources = [_split(path, weight or 0.0, list(_read(path, notices)), notices) for path, weight in parsed]
    return Corpus(sources, notices)


def _standard_library() -> list[Document]:
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [path.relative_to(root) for path in root.rglob("*.py")]
    names = sorted(path.as_posix() for path in paths if not _NOT_LIBRARY.intersection(path.parts))
    documents = []
    for name in names:
        # A distribution may carry a source in another encoding; such a file is no part of the default text.
        try:
            text = (root / name).read_bytes().decode()
        except UnicodeDecodeError:
            continue
        if text:
            documents.append(Document(name, text))
    if not documents:
        raise ValueError(
            f"{root} holds no Python sources, so there is no default text; give your own with --data"
        )
    return documents


def _parse(entry: str) -> tuple[str, float | None]:
    path, separator, tail = entry.rpartition("=")
    try:
        weight = float(tail)
    except ValueError:
        return entry, None
    if not separator:
        return entry, None
    if not 0 < weight < float("inf"):
        raise ValueError(f"--data {entry}: the weight must be a positive number")
    return path, weight


def _read(path: str, notices: list[str]) -> Iterator[Document | Shard]:
    start = Path(path)
    if not path:
        raise ValueError("--data has an empty path; name a file or folder ('.' is the current one)")
    there = _exists(start)
    if there and not start.is_dir():
        if not start.is_file():
            raise ValueError(f"--data {path}: no regular file; write what it yields to a file, and name that")
        yield from _read_file(start, start.name, _refuse_empty)
        return
    if there:
        found, root = list(_files(start, notices)), start
    elif glob.has_magic(path):
        found = [Path(p) for p in glob.glob(path, recursive=True) if Path(p).is_file()]
        root = Path(*takewhile(lambda part: not glob.has_magic(part), Path(path).parts))
    else:
        raise ValueError(
            f"--data {path}: no such file or folder; check the path, or quote a glob: 'folder/**/*.txt'"
        )
    found = [p for p in found if p.suffix != ".idx" or not p.with_suffix(".bin").exists()]
    folders = {parent for p in found for parent in p.relative_to(root).parents[:-1]}
    runs = [root / folder for folder in folders if is_run(root / folder)]
    found = [p for p in found if not any(run in p.parents for run in runs)]
    notices += [f"{run} is a run directory; left out of the text" for run in sorted(runs)]
    visible = sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(root).parts))
    if not visible:
        raise ValueError(f"--data {path}: no files there; name a folder with text or .jsonl files")
    for file in visible:
        yield from _read_file(
            file, file.relative_to(root).as_posix(), lambda p: notices.append(f"{p} is empty; skipped")
        )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise ValueError(
            f"--data {path} cannot be read ({error.strerror}); check the path and its permissions"
        ) from error


def _files(folder: Path, notices: list[str]) -> Iterator[Path]:
    """The files below, but for hidden folders; raises ValueError for a folder that may not be read."""

    def refuse(error: OSError) -> None:
        raise ValueError(
            f"{error.filename} cannot be read ({error.strerror}); check its permissions, or choose files by "
            "a glob"
        ) from error

    for path, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [link for name in folders if (link := Path(path, name)).is_symlink()]
        notices += [
            f"{link} is a link to a folder, not followed; name it too if it is text" for link in links
        ]
        yield from (file for name in names if (file := Path(path, name)).is_file())


def _refuse_empty(path: Path) -> None:
    raise ValueError(f"{path} is empty; leave it out of --data")


def _read_file(path: Path, name: str, on_empty: Callable[[Path], None]) -> Iterator[Document | Shard]:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{path}: the file's name is not UTF-8; rename it") from error
    if path.suffix in shards.SUFFIXES:
        yield shards.open_shard(path, name)
        return
    if path.suffix in shards.OTHER_SUFFIXES:
        raise ValueError(
            f"{path}: {path.suffix} files are not read; give text, .jsonl, or tokens as .npy or .bin"
        )
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.start}); convert it, for instance with iconv, or choose "
            "files by a glob that leaves it out"
        ) from error
    if not text.strip():
        on_empty(path)
    elif path.suffix == ".jsonl":
        yield from _read_jsonl(path, name, text)
    else:
        yield Document(name, text)


def _read_jsonl(path: Path, name: str, lines: str) -> Iterator[Document]:
    for number, line in enumerate(lines.split("\n"), 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f'{path}, line {number}: wanted a JSON object with the field "text"; correct or remove '
                "the line"
            ) from error
        if not isinstance(text, str):
            raise ValueError(f'{path}, line {number}: "text" is not a string; correct or remove the line')
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f'{path}, line {number}: "text" has half a surrogate pair (\\ud800 to \\udfff), which is no '
                "character; correct or remove the line"
            ) from error
        if text:
            yield Document(f"{name}:{number}", text)


def _split(name: str, weight: float, items: Sequence[Document | Shard], notices: list[str]) -> Source:
    """Splits by hash; where that leaves either side empty, holds out the end of the longest document."""
    files = [item for item in items if isinstance(item, Shard)]
    documents = [item for item in items if isinstance(item, Document)]
    if files and not documents:
        return Source(name, weight, [], [], files)
    if not documents:
        raise ValueError(f"--data {name}: no text in it; name files with text")
    train = [d for d in documents if not is_held_out(d.name)]
    held_out = [d for d in documents if is_held_out(d.name)]
    if train and held_out:
        return Source(name, weight, train, held_out, files)
    longest = max(documents, key=lambda d: len(d.text))
    cut = len(longest.text) - max(1, len(longest.text) // HELD_OUT_SHARE)
    cut = longest.text.rfind("\n", 0, cut) + 1 or cut
    notices.append(
        f"{name}: too few documents to hold some out by hash, so the last part of {longest.name} is held out"
    )
    train = [Document(d.name, d.text[:cut]) if d is longest else d for d in documents]
    train = [d for d in train if d.text]
    return Source(name, weight, train, [Document(longest.name, longest.text[cut:])], files)


def describe(corpus: Corpus) -> str:
    """One line: what was read, what is held out, and the hash to compare runs by."""
    train = sum(len(d.text.encode()) for d in corpus.train)
    files = [shard for source in corpus.sources for shard in source.shards]
    ready = f"{sum(len(s.tokens) for s in files):,} tokens in {len(files)} files; " if files else ""
    python = ".".join(map(str, sys.version_info[:3]))
    return (
        f"{', '.join(source.name for source in corpus.sources)}: {len(corpus.train)} documents, "
        f"{train / 1e6:.2f} MB; {ready}held out {len(corpus.held_out)}, "
        f"{len(corpus.held_out_bytes()) / 1e6:.3f} MB; "
        f"manifest {corpus.manifest_hash()[:16]}, Python {python}"
    )
