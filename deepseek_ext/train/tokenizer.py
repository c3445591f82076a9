"""Byte-level BPE with HF tokenizers: trained once on the training split, then read from the cache."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
import tokenizers
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from .corpus import Document
from .shards import Tokens

EOS = "<|eos|>"
# How other tokenizer files name the end of a document, tried in this order.
_EOS_NAMES = (EOS, "<｜end▁of▁sentence｜>", "<|endoftext|>", "<|end_of_text|>", "</s>")
# The marks of fill-in-the-middle: begin, hole, end; ours, then those of DeepSeek's released tokenizer.
FIM_NAMES = (
    ("<|fim_begin|>", "<|fim_hole|>", "<|fim_end|>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
)
_SPECIAL = [EOS, *FIM_NAMES[0]]


def train_tokenizer(documents: Sequence[Document], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE of at most vocab_size tokens; the same documents give the same tokenizer."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=_SPECIAL,
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in documents), trainer, length=len(documents))
    return tokenizer


def cached_tokenizer(documents: Sequence[Document], vocab_size: int, manifest: str, cache: Path) -> Tokenizer:
    """The tokenizer for a manifest, from the cache folder or trained now and kept there."""
    settings = f"{manifest} {vocab_size} {tokenizers.__version__} {' '.join(_SPECIAL)}"
    key = hashlib.sha256(settings.encode()).hexdigest()[:16]
    path = cache / f"tokenizer-{key}.json"
    if not path.exists():
        trained = train_tokenizer(documents, vocab_size).to_str()
        if not _write(path, lambda file: file.write(trained.encode())):
            return _usable(Tokenizer.from_str(trained))
    return load_tokenizer(path)


def load_tokenizer(path: Path) -> Tokenizer:
    """Reads a tokenizer.json; raises ValueError, naming it, if missing, damaged or without an end token."""
    if not path.is_file():
        raise ValueError(f"{path}: no such tokenizer file; name a tokenizer.json")
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # tokenizers raises plain Exception
        raise ValueError(
            f"{path} is not a tokenizer.json that can be read ({error}); delete or replace it"
        ) from error
    try:
        eos_id(tokenizer)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return _usable(tokenizer)


def _usable(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_padding()
    tokenizer.no_truncation()
    # Text that happens to contain "<|eos|>" is text, not the end of a document.
    tokenizer.encode_special_tokens = True
    return tokenizer


def eos_id(tokenizer: Tokenizer) -> int:
    """The id of the end-of-document token."""
    for name in _EOS_NAMES:
        token = tokenizer.token_to_id(name)
        if token is not None:
            return int(token)
    raise ValueError(f"the tokenizer has no end-of-document token; add one named {EOS}")


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the highest token id: what a model's vocab_size must reach."""
    return int(max(tokenizer.get_vocab().values())) + 1


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()


def encode_documents(tokenizer: Tokenizer, documents: Sequence[Document]) -> list[Tokens]:
    """Token ids of each document, the end-of-document token last."""
    eos = eos_id(tokenizer)
    encoded = tokenizer.encode_batch_fast([document.text for document in documents], add_special_tokens=False)
    return [np.array([*encoding.ids, eos], dtype=np.int32) for encoding in encoded]


def cached_encoding(
    tokenizer: Tokenizer, documents: Sequence[Document], manifest: str, cache: Path
) -> list[Tokens]:
    """encode_documents, kept in the cache folder: encoding takes longer than training the tokenizer."""
    if not documents:
        return []
    names = "\n".join(f"{d.name} {len(d.text)}" for d in documents)
    key = hashlib.sha256(f"{manifest} {tokenizer_hash(tokenizer)} {names}".encode()).hexdigest()[:16]
    path = cache / f"tokens-{key}.npz"
    if path.exists():
        try:
            with np.load(path, allow_pickle=False) as stored:
                tokens, ends = stored["tokens"], stored["ends"]
            if len(ends) != len(documents) or ends[-1] != len(tokens):
                raise ValueError("its lengths do not fit")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path}, which keeps the text's tokens for later runs, is damaged ({error}); delete it, and "
                "it is made anew"
            ) from error
    else:
        pieces = encode_documents(tokenizer, documents)
        tokens, ends = np.concatenate(pieces), np.cumsum([len(piece) for piece in pieces])
        _write(path, lambda file: np.savez(file, tokens=tokens, ends=ends))
    return np.split(tokens, ends[:-1])


def _write(path: Path, write: Callable[[IO[bytes]], object]) -> bool:
    """Writes beside, then renames: two runs that start together never read half a file.

    A cache that cannot be written costs time at every start, and no more; then it says so and returns False.
    """
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        print(f"SLOW: {path} cannot be kept for later runs ({error.strerror or error})", file=sys.stderr)
        return False
    return True
