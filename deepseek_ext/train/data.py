"""From text to batches: corpus, tokenizer and packing put together for one run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ..model import DeepseekV3
from .config import TrainConfig
from .corpus import Corpus, Source, load_corpus
from .fim import FillInTheMiddle
from .packing import IGNORED, Mixture, PackedSequences, document_starts, validation_windows
from .tokenizer import (
    cached_encoding,
    cached_tokenizer,
    eos_id,
    load_tokenizer,
    tokenizer_hash,
    vocabulary_size,
)

_VALIDATION_TOKENS = 8192  # a pass: more brings no speed and costs memory


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
    """Of the training split, its ends of documents counted as tokens."""
    eos: int
    """The end-of-document token."""
    document_masking: bool = False
    """Whether attention is confined to documents."""

    def document_starts(self, tokens: Tensor) -> Tensor | None:
        """What the model is to be told of the documents in `tokens` [B, T]."""
        return document_starts(tokens, self.eos) if self.document_masking else None

    def save_tokenizer(self, run_dir: Path) -> None:
        """Writes tokenizer.json, which checkpoints and exports need beside them; raises OSError."""
        (run_dir / "tokenizer.json").write_text(self.tokenizer.to_str(pretty=True))


def prepare_data(config: TrainConfig, *, tokenizer: Tokenizer | None = None) -> RunData:
    """Reads, tokenises and packs the text of a run; the cache lies beside run_dir.

    tokenizer: one to use whatever the configuration says, such as a checkpoint's.
    Raises ValueError where text or tokenizer do not fit, saying what to do.
    """
    corpus = load_corpus(config.data)
    manifest = corpus.manifest_hash()
    cache = config.run_dir.parent / ".cache"
    if tokenizer is None and config.tokenizer is not None:
        tokenizer = load_tokenizer(config.tokenizer)
    if tokenizer is None:
        tokenizer = cached_tokenizer(corpus.train, config.vocab_size, manifest, cache)
    if (needed := vocabulary_size(tokenizer)) > config.vocab_size:
        name = config.tokenizer or "the tokenizer"
        raise ValueError(
            f"{name} has {needed} tokens, the model's vocabulary {config.vocab_size}; "
            f"write --vocab-size {128 * math.ceil(needed / 128)}"
        )
    eos = eos_id(tokenizer)
    encoded = [cached_encoding(tokenizer, source.train, manifest, cache) for source in corpus.sources]
    held_out = cached_encoding(tokenizer, corpus.held_out, manifest, cache)

    def rewrite(source: Source) -> FillInTheMiddle | None:
        if not config.fim_rate:
            return None
        return FillInTheMiddle(source.train, tokenizer, rate=config.fim_rate, seed=config.seed)

    packed = [
        PackedSequences(
            tokens,
            config.seq_len,
            eos=eos,
            seed=config.seed,
            name=source.name,
            rewrite=rewrite(source),
        )
        for source, tokens in zip(corpus.sources, encoded, strict=True)
    ]
    train_bytes = sum(len(document.text.encode()) for document in corpus.train)
    return RunData(
        corpus=corpus,
        manifest=manifest,
        tokenizer=tokenizer,
        tokenizer_hash=tokenizer_hash(tokenizer),
        batches=Mixture(packed, [source.weight for source in corpus.sources]),
        validation=validation_windows(held_out, config.seq_len, eos=eos),
        held_out_bytes=len(corpus.held_out_bytes()),
        bytes_per_token=train_bytes / sum(source.tokens_per_epoch for source in packed),
        eos=eos,
        document_masking=config.document_masking,
    )


@torch.no_grad()
def bits_per_byte(model: DeepseekV3, data: RunData, *, stop: Callable[[], bool] = lambda: False) -> float:
    """Nats over all held-out targets, ends of documents included, / (ln 2 * held-out bytes).

    stop: asked between passes; once true, the result is NaN.
    """
    tokens, targets = data.validation
    windows = max(1, _VALIDATION_TOKENS // tokens.shape[1])
    was_training = model.training
    model.eval()
    nats = 0.0
    try:
        for start in range(0, len(tokens), windows):
            if stop():
                return math.nan
            wanted = targets[start : start + windows]
            count = int((wanted != IGNORED).sum())
            batch = tokens[start : start + windows]
            starts = data.document_starts(batch)
            loss = model.loss(batch, wanted, document_starts=starts, use_mtp=False)
            nats += loss.main.item() * count
    finally:
        model.train(was_training)
    return nats / (math.log(2) * data.held_out_bytes)
