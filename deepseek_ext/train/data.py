"""From text to batches: corpus, tokenizer and packing put together for one run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from ..model import DeepseekV3
from ..parallel.world import World
from .config import TrainConfig
from .corpus import HELD_OUT_SHARE, Corpus, Document, is_held_out, load_corpus
from .fim import FillInTheMiddle
from .folder import TOKENIZER
from .packing import IGNORED, Mixture, PackedSequences, document_starts, validation_windows
from .shards import Shard, Tokens, cut_documents
from .tokenizer import (
    cached_encoding,
    cached_tokenizer,
    eos_id,
    load_tokenizer,
    tokenizer_hash,
    vocabulary_size,
)

_VALIDATION_TOKENS = 8192  # a pass: more brings no speed and costs memory
SAMPLE_TOKENS = 48  # that a sample adds to its prompt
_PYTHON_PROMPTS = ("def __init__(self, ", "import os\n", "class Error(")
_PROMPT_TOKENS = 8  # of a held-out document that serves as a prompt


@dataclass(slots=True)
class RunData:
    """Everything a run knows of its text."""

    corpus: Corpus
    manifest: str
    tokenizer: Tokenizer
    tokenizer_hash: str
    batches: Mixture
    validation: tuple[Tensor, Tensor]
    held_out_bytes: int
    bytes_per_token: float
    """Of the training split, its ends of documents counted as tokens; of the held-out one where the data
    are ready-made tokens."""
    eos: int
    """The end-of-document token."""
    prompts: tuple[str, ...] = ()
    """What samples continue."""
    document_masking: bool = False
    """Whether attention is confined to documents."""

    def document_starts(self, tokens: Tensor) -> Tensor | None:
        """What the model is to be told of the documents in `tokens` [B, T]."""
        return document_starts(tokens, self.eos) if self.document_masking else None

    def save_tokenizer(self, run_dir: Path) -> None:
        """Writes tokenizer.json, which checkpoints and exports need beside them; raises OSError."""
        (run_dir / TOKENIZER).write_text(self.tokenizer.to_str(pretty=True), encoding="utf-8")


def prepare_data(config: TrainConfig, *, tokenizer: Tokenizer | None = None) -> RunData:
    """Reads, tokenises and packs the text of a run; the cache lies beside run_dir.

    tokenizer: one to use whatever the configuration says, such as a checkpoint's.
    Raises ValueError where text or tokenizer do not fit, saying what to do.
    """
    corpus = load_corpus(config.data)
    manifest = corpus.manifest_hash()
    cache = config.run_dir.parent / ".cache"
    if tokenizer is None:
        tokenizer = _tokenizer(config, corpus, manifest, cache)
    if (needed := vocabulary_size(tokenizer)) > config.vocab_size:
        name = config.tokenizer or "the tokenizer"
        raise ValueError(
            f"{name} has {needed} tokens, the model's vocabulary {config.vocab_size}; "
            f"write --vocab-size {128 * math.ceil(needed / 128)}"
        )
    _check_prompts(config, tokenizer)
    eos = eos_id(tokenizer)
    packed, held_out = [], []
    for source in corpus.sources:
        train = cached_encoding(tokenizer, source.train, manifest, cache)
        held_out += cached_encoding(tokenizer, source.held_out, manifest, cache)
        for shard in source.shards:
            ours, theirs = _split_shard(shard, tokenizer, corpus.notices)
            train += ours
            held_out += theirs
            source.decoded += [_decoded(shard, tokens, tokenizer) for tokens in theirs]
        rewrite = None
        if config.fim_rate:
            if not source.train:
                raise ValueError(
                    f"--fim-rate rearranges text, and {source.name} holds tokens only; write --fim-rate 0"
                )
            rewrite = FillInTheMiddle(source.train, tokenizer, rate=config.fim_rate, seed=config.seed)
        packed.append(
            PackedSequences(
                train, config.seq_len, eos=eos, seed=config.seed, name=source.name, rewrite=rewrite
            )
        )
    return RunData(
        corpus=corpus,
        manifest=manifest,
        tokenizer=tokenizer,
        tokenizer_hash=tokenizer_hash(tokenizer),
        batches=Mixture(packed, [source.weight for source in corpus.sources]),
        validation=validation_windows(held_out, config.seq_len, eos=eos),
        held_out_bytes=len(corpus.held_out_bytes()),
        bytes_per_token=_bytes_per_token(corpus, packed, held_out),
        eos=eos,
        prompts=_prompts(config, tokenizer, held_out),
        document_masking=config.document_masking,
    )


def _tokenizer(config: TrainConfig, corpus: Corpus, manifest: str, cache: Path) -> Tokenizer:
    if config.tokenizer is not None:
        return load_tokenizer(config.tokenizer)
    for source in corpus.sources:
        if source.shards:
            raise ValueError(
                f"{source.shards[0].path} holds tokens, and which text they stand for is not in it; name the "
                "tokenizer.json that it was made with as --tokenizer"
            )
    return cached_tokenizer(corpus.train, config.vocab_size, manifest, cache)


def _check_prompts(config: TrainConfig, tokenizer: Tokenizer) -> None:
    """Raises ValueError for a prompt that no sample can continue: it would end the run at its first one."""
    longest = config.model_config().max_position_embeddings - SAMPLE_TOKENS
    for prompt in config.prompts or ():
        try:
            tokens = len(tokenizer.encode(prompt).ids)
        except TypeError as error:  # bytes of another encoding
            raise ValueError(f"--prompts {prompt!r} is no text; write it in UTF-8") from error
        if not 0 < tokens <= longest:
            raise ValueError(
                f"--prompts {shorten(prompt, 40)!r} has {tokens} tokens, and a sample needs 1 to {longest}; "
                "write another, or --prompts with none for no samples"
            )


def _prompts(config: TrainConfig, tokenizer: Tokenizer, held_out: list[Tokens]) -> tuple[str, ...]:
    """What the configuration says; by default prompts that fit the text."""
    if config.prompts is not None:
        return config.prompts
    if not config.data:
        return _PYTHON_PROMPTS
    # A document's last token is its end; a character cut in two is left out.
    starts = (tokenizer.decode(tokens[:-1][:_PROMPT_TOKENS].tolist()) for tokens in held_out)
    whole = (start.rstrip("\N{REPLACEMENT CHARACTER}") for start in starts)
    return tuple(islice(filter(None, whole), len(_PYTHON_PROMPTS)))


def _split_shard(shard: Shard, tokenizer: Tokenizer, notices: list[str]) -> tuple[list[Tokens], list[Tokens]]:
    """Documents to train on and held-out ones, by the hash of their number; where that leaves either side
    empty, the end of the longest is held out."""
    documents = cut_documents(shard, eos_id(tokenizer), vocabulary_size(tokenizer))
    train: list[Tokens] = []
    held_out: list[Tokens] = []
    for number, tokens in enumerate(documents):
        (held_out if is_held_out(f"{shard.name}:{number}") else train).append(tokens)
    if train and held_out:
        return train, held_out
    notices.append(f"{shard.path}: too few documents to hold some out by hash, so the end of one is held out")
    longest = max(range(len(documents)), key=lambda i: len(documents[i]))
    whole = documents[longest]
    cut = len(whole) - 1 - max(1, len(whole) // HELD_OUT_SHARE)
    kept = np.append(whole[:cut], whole[-1:])
    return [*documents[:longest], kept, *documents[longest + 1 :]], [whole[cut:]]


def _decoded(shard: Shard, tokens: Tokens, tokenizer: Tokenizer) -> Document:
    """The text of a held-out document, on whose bytes the score is counted."""
    return Document(shard.name, tokenizer.decode(tokens[:-1].tolist(), skip_special_tokens=False))


def _bytes_per_token(corpus: Corpus, packed: list[PackedSequences], held_out: list[Tokens]) -> float:
    if any(source.shards for source in corpus.sources):
        return len(corpus.held_out_bytes()) / sum(map(len, held_out))
    train_bytes = sum(len(document.text.encode()) for document in corpus.train)
    return train_bytes / sum(source.tokens_per_epoch for source in packed)


@torch.no_grad()
def bits_per_byte(
    model: DeepseekV3,
    data: RunData,
    world: World | None = None,
    *,
    stop: Callable[[], bool] = lambda: False,
) -> float:
    """Nats over all held-out targets, ends of documents included, / (ln 2 * held-out bytes).

    stop: asked between passes; once true, the result is NaN. Of several processes each takes an equal share
    of the passes, and all get the result.
    """
    world = world or World()
    tokens, targets = data.validation
    windows = max(1, _VALIDATION_TOKENS // tokens.shape[1])
    starts = range(0, len(tokens), windows)
    was_training = model.training
    model.eval()
    nats = 0.0
    try:
        for n in range(math.ceil(len(starts) / world.size)):
            if stop():
                return math.nan
            start = starts[min(n * world.size + world.rank, len(starts) - 1)]
            batch, wanted = (x[start : start + windows].to(world.device) for x in (tokens, targets))
            count = int((wanted != IGNORED).sum())
            begins = data.document_starts(batch)
            loss = model.loss(batch, wanted, document_starts=begins, use_mtp=False)
            if n * world.size + world.rank < len(starts):  # else along for the others' sake
                nats += loss.main.item() * count
    finally:
        model.train(was_training)
    nats = world.total(torch.tensor(nats, dtype=torch.float64, device=world.device)).item()
    return nats / (math.log(2) * data.held_out_bytes)
