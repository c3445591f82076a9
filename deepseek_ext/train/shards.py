"""Ready-made token files, memory-mapped and cut into documents where their end-of-document token stands.

    .npy    a NumPy array of integers, one dimension
    .bin    with a .idx of the same name beside it: Megatron-LM's indexed data set
            with a header of 256 int32 that llm.c writes: (20240520, 1, n) before n uint16, (20240801, 7, n)
            before n uint32
            otherwise: uint16 from the first byte on, as nanoGPT writes them

No pickle is ever loaded, and numbers are little-endian.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SUFFIXES = {".npy", ".bin"}
OTHER_SUFFIXES = {".npz", ".pt", ".pth", ".safetensors", ".arrow", ".parquet"}  # named, so that we can refuse

Tokens = npt.NDArray[np.integer[Any]]

_LLMC = {(20240520, 1): "<u2", (20240801, 7): "<u4"}
_LLMC_HEADER = 256 * 4
_MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
_MEGATRON_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_AT_ONCE = 1 << 24  # tokens


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of tokens, with its name relative to its source."""

    name: str
    path: Path
    tokens: Tokens
    digest: str
    """SHA-256 of the tokens as they lie in the file."""


def open_shard(path: Path, name: str) -> Shard:
    """Maps a token file into memory and hashes it; raises ValueError, naming it, if it is none."""
    try:
        tokens = _open_npy(path) if path.suffix == ".npy" else _open_bin(path)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as tokens ({error}); see docs/training.md for the formats"
        ) from error
    if not len(tokens):
        raise ValueError(f"{path} holds no tokens; leave it out of --data")
    digest = hashlib.sha256(tokens.dtype.str.encode())
    for chunk in _chunks(tokens):
        digest.update(np.ascontiguousarray(chunk).data)
    return Shard(name, path, tokens, digest.hexdigest())


def cut_documents(shard: Shard, eos: int, vocabulary: int) -> list[Tokens]:
    """The documents of a shard, each with the end-of-document token last; most are views of the file.

    Documents that would be empty are left out, and the last one may lack its end in the file. Raises
    ValueError where an id is none of the tokenizer's `vocabulary`.
    """
    for chunk in _chunks(shard.tokens):
        lowest, highest = int(chunk.min()), int(chunk.max())
        if lowest < 0 or highest >= vocabulary:
            raise ValueError(
                f"{shard.path} holds token {lowest if lowest < 0 else highest}, the tokenizer has ids 0 to "
                f"{vocabulary - 1}; give the tokenizer.json that the file was made with as --tokenizer"
            )
    ends = [np.flatnonzero(chunk == eos) + i * _AT_ONCE + 1 for i, chunk in enumerate(_chunks(shard.tokens))]
    documents, start = [], 0
    for end in np.concatenate(ends).tolist():
        if end - start > 1:
            documents.append(shard.tokens[start:end])
        start = end
    if start < len(shard.tokens):
        documents.append(np.append(shard.tokens[start:], np.array(eos, dtype=shard.tokens.dtype)))
    if not documents:
        raise ValueError(f"{shard.path} holds nothing but ends of documents; leave it out of --data")
    return documents


def _open_npy(path: Path) -> Tokens:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "iu":
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
        raise ValueError(f"wanted an array of integers with one dimension, found {found}")
    return np.asarray(array)


def _open_bin(path: Path) -> Tokens:
    size, index = path.stat().st_size, path.with_suffix(".idx")
    if index.is_file():
        kind, start, count = _megatron_type(index), 0, None
    else:
        head = np.fromfile(path, dtype="<i4", count=3).tolist()
        known = _LLMC.get(tuple(head[:2]))
        kind, start, count = (known, _LLMC_HEADER, head[2]) if known else ("<u2", 0, None)
    width = np.dtype(kind).itemsize
    if (size - start) % width or (count is not None and size != start + count * width):
        wanted = f"{count} tokens" if count is not None else "whole tokens"
        raise ValueError(f"{size - start} bytes are not {wanted} of {width} bytes")
    if size == start:
        return np.empty(0, dtype=kind)
    return np.asarray(np.memmap(path, dtype=kind, mode="r", offset=start))


def _megatron_type(index: Path) -> str:
    with open(index, "rb") as file:
        head = file.read(len(_MEGATRON_MAGIC) + 9)  # then the version, 8 bytes, and the type, 1
    if not head.startswith(_MEGATRON_MAGIC) or head[-1] not in _MEGATRON_TYPES:
        raise ValueError(f"{index.name} beside it is no index of Megatron-LM's with integer tokens")
    return _MEGATRON_TYPES[head[-1]]


def _chunks(tokens: Tokens) -> Iterator[Tokens]:
    return (tokens[i : i + _AT_ONCE] for i in range(0, len(tokens), _AT_ONCE))
