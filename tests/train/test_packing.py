"""Packing: every token once an epoch, in an order that only the position decides."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_ext.train.packing import (
    IGNORED,
    Mixture,
    PackedSequences,
    document_starts,
    validation_windows,
)
from deepseek_ext.train.shards import Tokens

EOS = 0


def numbered(lengths: list[int]) -> list[Tokens]:
    """Documents whose tokens are all different: 1, 2, 3, ..., each document ending with EOS."""
    documents, next_token = [], 1
    for length in lengths:
        documents.append(np.array([*range(next_token, next_token + length), EOS], dtype=np.int32))
        next_token += length
    return documents


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, 7), st.integers(0, 3))
def test_every_token_is_a_target_once_an_epoch(lengths: list[int], seq_len: int, seed: int) -> None:
    documents = numbered(lengths)
    total = sum(map(len, documents))
    if total < seq_len:
        return
    # After seq_len epochs the sequences end where an epoch ends, whatever the lengths.
    source = PackedSequences(documents, seq_len, eos=EOS, seed=seed)
    targets = np.concatenate([source.sequence(n)[1:] for n in range(total)])
    counts = np.bincount(targets, minlength=sum(lengths) + 1)
    assert (counts[1:] == seq_len).all()
    assert counts[0] == seq_len * len(documents)


def test_documents_stay_whole_and_in_order() -> None:
    documents = numbered([5, 3, 8, 1])
    source = PackedSequences(documents, 3, eos=EOS, seed=1)
    starts = [document[0] for document in documents]
    stream = source._slice(0, source.tokens_per_epoch)
    for token, following in pairwise(stream):
        if token == EOS:
            assert following in starts
        else:
            assert following in (token + 1, EOS)


def test_inputs_are_the_tokens_before_the_targets() -> None:
    documents = numbered([5, 3, 8, 1])
    source = PackedSequences(documents, 4, eos=EOS, seed=3)
    whole = source._slice(0, 5 * source.tokens_per_epoch)
    before = np.concatenate([[EOS], whole[:-1]])
    for n in range(20):
        row = source.sequence(n)
        (at,) = [s for s in range(0, 100, 4) if (whole[s : s + 4] == row[1:]).all() and before[s] == row[0]][
            :1
        ]
        assert (before[at : at + 4] == row[:-1]).all()


def test_epochs_differ_and_seeds_differ() -> None:
    documents = numbered([4] * 12)
    one, two = (PackedSequences(documents, 5, eos=EOS, seed=seed) for seed in (1, 2))
    per_epoch = 60 // 5
    first = [one.sequence(n).tolist() for n in range(per_epoch)]
    second = [one.sequence(n).tolist() for n in range(per_epoch, 2 * per_epoch)]
    other = [two.sequence(n).tolist() for n in range(per_epoch)]
    assert first != second
    assert first != other
    assert one.epoch(per_epoch) == 1.0


def test_any_position_can_be_read_first() -> None:
    documents = numbered([7, 2, 11, 5, 3])
    walked = PackedSequences(documents, 4, eos=EOS, seed=0)
    rows = [walked.sequence(n).tolist() for n in range(40)]
    for n in (39, 0, 17, 8, 38):
        assert PackedSequences(documents, 4, eos=EOS, seed=0).sequence(n).tolist() == rows[n]


def rewritten(documents: list[Tokens]) -> Callable[[int], dict[int, Tokens]]:
    """In epoch e the documents e, e + 3, ... are one token longer."""

    def rewrite(epoch: int) -> dict[int, Tokens]:
        chosen = range(epoch % 3, len(documents), 3)
        return {i: np.array([1000, *documents[i]], dtype=np.int32) for i in chosen}

    return rewrite


def test_epochs_may_rewrite_documents() -> None:
    documents = numbered([7, 2, 11, 5, 3])
    source = PackedSequences(documents, 4, eos=EOS, seed=0, rewrite=rewritten(documents))
    lengths = [33 + 2, 33 + 2, 33 + 1]
    stream = source._slice(0, 3 * sum(lengths))
    at = 0
    for length in lengths * 3:
        epoch = stream[at : at + length]
        assert (epoch == 1000).sum() == length - 33
        assert np.bincount(epoch[epoch < 1000])[1:].tolist() == [1] * 28
        at += length
    # Four epochs of each length end where a sequence does.
    count = sum(lengths) * 4 // 4
    targets = np.concatenate([source.sequence(n)[1:] for n in range(count)])
    assert sorted(targets) == sorted(source._slice(0, 4 * sum(lengths)))
    assert source.epoch(count) == 12.0
    rows = [source.sequence(n).tolist() for n in range(40)]
    for n in (39, 0, 17, 38):
        fresh = PackedSequences(documents, 4, eos=EOS, seed=0, rewrite=rewritten(documents))
        assert fresh.sequence(n).tolist() == rows[n]


def test_an_end_of_document_begins_the_next() -> None:
    tokens = torch.tensor([[5, 6, EOS, 7, 8, EOS, EOS, 9], [EOS, 1, 2, 3, 4, 5, 6, EOS]])
    starts = document_starts(tokens, EOS)
    assert starts.dtype == torch.int32
    assert starts.tolist() == [[0, 0, 2, 2, 2, 5, 6, 6], [0] * 7 + [7]]


def test_mixture_keeps_to_its_shares_and_resumes() -> None:
    def mixture() -> Mixture:
        sources = [PackedSequences(numbered([30]), 4, eos=EOS, seed=s) for s in range(3)]
        return Mixture(sources, [5.0, 3.0, 2.0])

    whole = mixture()
    for n in range(1, 101):
        whole.batch(1)
        for drawn, share in zip(whole.drawn, (0.5, 0.3, 0.2), strict=True):
            assert abs(drawn - share * n) <= 1
    expected = whole.batch(6)
    resumed = mixture()
    resumed.drawn = [50, 30, 20]
    for a, b in zip(resumed.batch(6), expected, strict=True):
        assert torch.equal(a, b)


def test_batches_are_int64_and_shifted_by_one() -> None:
    tokens, targets = Mixture([PackedSequences(numbered([50]), 8, eos=EOS, seed=0)], [1.0]).batch(5)
    assert tokens.dtype == targets.dtype == torch.int64
    assert tokens.shape == targets.shape == (5, 8)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])


def test_text_shorter_than_a_sequence_is_refused() -> None:
    with pytest.raises(
        ValueError, match="the text has 6 tokens to train on, less than one sequence of 32; give more text"
    ):
        PackedSequences(numbered([5]), 32, eos=EOS, seed=0)


@pytest.mark.parametrize("seq_len", [1, 4, 5, 12, 100])
def test_validation_windows_hold_every_target_once(seq_len: int) -> None:
    documents = numbered([5, 0, 4])
    tokens, targets = validation_windows(documents, seq_len, eos=EOS)
    stream = np.concatenate(documents).tolist()
    counted = targets[targets != IGNORED].tolist()
    assert counted == stream
    assert tokens.flatten()[: len(stream)].tolist() == [EOS, *stream[:-1]]
