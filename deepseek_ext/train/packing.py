"""Packing: documents joined end to end and cut into sequences, with a position that is a few integers."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .shards import Tokens

IGNORED = -100  # a target that the loss leaves out


@dataclass(frozen=True, slots=True)
class _Epoch:
    """One reading of all documents."""

    order: npt.NDArray[np.int64]
    """Documents in the order in which they are read."""
    ends: npt.NDArray[np.int64]
    """Where each of them ends, in tokens from the start of the epoch."""
    rewritten: Mapping[int, Tokens]
    """Documents that read differently in this epoch."""


class PackedSequences:
    """One source as an endless list of sequences; number n is a pure function of (documents, seed, n).

    Each epoch joins all documents in a fresh order; epochs follow one another without a gap. The stream is
    cut into sequences of seq_len tokens, which are shuffled within their epoch: neighbours in a long
    document would otherwise fill whole batches. Every token is a target exactly once an epoch, and the input
    of a target is the token before it in the stream (at the very start: end of document).

    rewrite: from the number of an epoch to the documents, by index, that read differently in it.
    """

    def __init__(
        self,
        documents: Sequence[Tokens],
        seq_len: int,
        *,
        eos: int,
        seed: int,
        name: str = "the text",
        rewrite: Callable[[int], Mapping[int, Tokens]] | None = None,
    ) -> None:
        self.documents = documents
        self.seq_len = seq_len
        self.eos = eos
        self.seed = seed
        self.rewrite = rewrite
        self._lengths = np.fromiter(map(len, documents), dtype=np.int64, count=len(documents))
        self.tokens_per_epoch = int(self._lengths.sum())  # as the documents are, none rewritten
        if self.tokens_per_epoch < seq_len:
            raise ValueError(
                f"{name} has {self.tokens_per_epoch} tokens to train on, less than one sequence of "
                f"{seq_len}; give more text with --data, or a smaller --seq-len"
            )
        self._ends = [0]  # of the epochs so far, in tokens of the stream; the first entry is its start
        self._epochs: dict[int, _Epoch] = {}
        self._order: tuple[int, torch.Tensor] | None = None

    def sequence(self, n: int) -> Tokens:
        """The n-th sequence drawn: [seq_len + 1] tokens; inputs lack the last, targets the first."""
        epoch = self._epoch_of(n * self.seq_len)
        start = (self._first(epoch) + int(self._shuffled(epoch)[n - self._first(epoch)])) * self.seq_len
        return np.concatenate([self._slice(start - 1, start), self._slice(start, start + self.seq_len)])

    def epoch(self, n: int) -> float:
        """How many epochs the first n sequences make."""
        token = n * self.seq_len
        epoch = self._epoch_of(token)
        return epoch + (token - self._ends[epoch]) / (self._ends[epoch + 1] - self._ends[epoch])

    def _epoch_of(self, token: int) -> int:
        """The epoch that this token of the stream belongs to."""
        while self._ends[-1] <= token:
            # The epochs before have to be measured too, since rewritten documents differ in length.
            self._ends.append(self._ends[-1] + int(self._read(len(self._ends) - 1).ends[-1]))
        return bisect_right(self._ends, token) - 1

    def _first(self, epoch: int) -> int:
        """The number of the first sequence that starts in this epoch, or later."""
        return -(-self._ends[epoch] // self.seq_len)

    def _shuffled(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            count = self._first(epoch + 1) - self._first(epoch)
            self._order = epoch, torch.randperm(count, generator=self._generator("sequences", epoch))
        return self._order[1]

    def _slice(self, start: int, end: int) -> Tokens:
        """Tokens [start, end) of the endless stream."""
        if start < 0:
            return np.array([self.eos], dtype=np.int32)
        pieces = []
        while start < end:
            number = self._epoch_of(start)
            epoch, offset = self._read(number), start - self._ends[number]
            at = int(np.searchsorted(epoch.ends, offset, side="right"))
            index = int(epoch.order[at])
            document = epoch.rewritten.get(index)
            document = self.documents[index] if document is None else document
            skipped = offset - (int(epoch.ends[at]) - len(document))
            pieces.append(document[skipped : skipped + end - start])
            start += len(pieces[-1])
        return np.concatenate(pieces).astype(np.int32, copy=False)

    def _read(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            order = torch.randperm(len(self.documents), generator=self._generator("documents", epoch)).numpy()
            rewritten = self.rewrite(epoch) if self.rewrite else {}
            lengths = self._lengths.copy()
            for index, document in rewritten.items():
                lengths[index] = len(document)
            # A sequence reaches at most into the epochs beside its own.
            self._epochs = {e: read for e, read in self._epochs.items() if abs(e - epoch) == 1}
            self._epochs[epoch] = _Epoch(order, np.cumsum(lengths[order]), rewritten)
        return self._epochs[epoch]

    def _generator(self, what: str, epoch: int) -> torch.Generator:
        digest = hashlib.sha256(f"{self.seed} {what} {epoch}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Mixture:
    """Batches from several sources in proportion to their weights; its state is `drawn`, a count a source.

    The source of the next sequence is the one furthest behind its share, so that after n sequences each
    source has given its share of n to within one.
    """

    def __init__(self, sources: Sequence[PackedSequences], weights: Sequence[float]) -> None:
        self.sources = list(sources)
        self.shares = [weight / sum(weights) for weight in weights]
        self.drawn = [0] * len(self.sources)

    def batch(self, sequences: int) -> tuple[Tensor, Tensor]:
        """The next tokens and targets, int64 [sequences, seq_len] each."""
        rows = torch.from_numpy(np.stack([self._next() for _ in range(sequences)])).long()
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def copy(self) -> Mixture:
        """Another position in the same sources."""
        other = Mixture(self.sources, self.shares)
        other.drawn = list(self.drawn)
        return other

    def epoch(self) -> float:
        """How often the most used source has been read."""
        return max(source.epoch(n) for source, n in zip(self.sources, self.drawn, strict=True))

    def _next(self) -> Tokens:
        total = sum(self.drawn) + 1
        behind = [share * total - n for share, n in zip(self.shares, self.drawn, strict=True)]
        choice = behind.index(max(behind))
        sequence = self.sources[choice].sequence(self.drawn[choice])
        self.drawn[choice] += 1
        return sequence


def document_starts(tokens: Tensor, eos: int) -> Tensor:
    """For each position of packed inputs, int64 [B, T], where its document starts: int32 [B, T].

    The end-of-document token is the input from which a document's first token is predicted, so as an input it
    belongs to the document that follows. A document cut by the start of a sequence begins there.
    """
    at = torch.arange(tokens.shape[1], dtype=torch.int32, device=tokens.device)
    return torch.where(tokens == eos, at, 0).cummax(1).values


def validation_windows(documents: Sequence[Tokens], seq_len: int, *, eos: int) -> tuple[Tensor, Tensor]:
    """The held-out documents in order, cut into windows: tokens and targets, int64 [windows, seq_len].

    Every held-out token, ends of documents included, is a target once; the rest of the last window is
    ignored.
    """
    stream = np.concatenate([np.array([eos], dtype=np.int32), *documents])
    targets = len(stream) - 1
    windows = -(-targets // seq_len)
    tokens = torch.full((windows * seq_len,), eos, dtype=torch.int64)
    wanted = torch.full((windows * seq_len,), IGNORED, dtype=torch.int64)
    tokens[:targets] = torch.from_numpy(stream[:-1].astype(np.int64))
    wanted[:targets] = torch.from_numpy(stream[1:].astype(np.int64))
    return tokens.view(windows, seq_len), wanted.view(windows, seq_len)
