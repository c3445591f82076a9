"""Fill-in-the-middle: the pieces are the document, the order is prefix, suffix, middle."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from deepseek_ext.train.config import TrainConfig
from deepseek_ext.train.corpus import Document
from deepseek_ext.train.data import prepare_data
from deepseek_ext.train.fim import FillInTheMiddle, fim_ids
from deepseek_ext.train.shards import Tokens
from deepseek_ext.train.tokenizer import FIM_NAMES, encode_documents, eos_id, train_tokenizer

DOCUMENTS = [
    Document(f"{n}.txt", f"naïve café {n} — 東京 {'x' * (n % 7)}<|fim_hole|>\n" * 3) for n in range(400)
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer = train_tokenizer(DOCUMENTS, 320)
    tokenizer.encode_special_tokens = True
    return tokenizer


def pieces(tokenizer: Tokenizer, tokens: Tokens) -> tuple[str, str, str]:
    """Prefix, suffix and middle of a rearranged document."""
    begin, hole, end = fim_ids(tokenizer)
    ids = tokens.tolist()
    assert ids[0] == begin
    assert ids[-1] == eos_id(tokenizer)
    assert [ids.count(token) for token in (begin, hole, end, ids[-1])] == [1, 1, 1, 1]
    a, b = ids.index(hole), ids.index(end)
    assert 0 < a < b
    prefix, suffix, middle = (tokenizer.decode(part) for part in (ids[1:a], ids[a + 1 : b], ids[b + 1 : -1]))
    return prefix, suffix, middle


def test_the_pieces_are_the_document(tokenizer: Tokenizer) -> None:
    fim = FillInTheMiddle(DOCUMENTS, tokenizer, rate=1.0, seed=0)
    rewritten = fim(0)
    assert sorted(rewritten) == list(range(400))
    cuts = set()
    for index, tokens in rewritten.items():
        prefix, suffix, middle = pieces(tokenizer, tokens)
        assert prefix + middle + suffix == DOCUMENTS[index].text
        assert middle
        cuts.add((len(prefix), len(middle)))
    assert len(cuts) > 200
    assert min(a for a, _ in cuts) < 5 < 50 < max(a for a, _ in cuts)


def test_the_rate_is_kept_and_each_epoch_draws_anew(tokenizer: Tokenizer) -> None:
    fim = FillInTheMiddle(DOCUMENTS, tokenizer, rate=0.1, seed=0)
    epochs = [fim(epoch) for epoch in range(10)]
    # 4,000 draws at 0.1: five standard deviations are 95.
    assert 305 < sum(map(len, epochs)) < 495
    assert len({frozenset(epoch) for epoch in epochs}) == 10
    again = FillInTheMiddle(list(DOCUMENTS), tokenizer, rate=0.1, seed=0)(7)
    assert {i: t.tolist() for i, t in again.items()} == {i: t.tolist() for i, t in epochs[7].items()}
    assert set(FillInTheMiddle(DOCUMENTS, tokenizer, rate=0.1, seed=1)(7)) != set(again)
    # Another document in the corpus changes nothing for the others.
    assert {i + 1 for i in fim(3)} <= set(
        FillInTheMiddle([Document("new", "new"), *DOCUMENTS], tokenizer, rate=0.1, seed=0)(3)
    )


def test_one_character_is_a_middle(tokenizer: Tokenizer) -> None:
    tokens = FillInTheMiddle([Document("a", "é")], tokenizer, rate=1.0, seed=0)(0)[0]
    assert pieces(tokenizer, tokens) == ("", "", "é")


def test_released_names_are_known_and_none_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"--fim-rate needs a tokenizer with the tokens <\|fim_begin\|>, "):
        fim_ids(Tokenizer.from_str('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}'))
    other = Tokenizer.from_str('{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}')
    other.add_special_tokens(list(FIM_NAMES[1]))
    assert fim_ids(other) == (1, 2, 3)


def test_held_out_text_stays_as_it_is(text_folder: Path, tmp_path: Path) -> None:
    def config(rate: float) -> TrainConfig:
        return TrainConfig(
            data=(str(text_folder),), vocab_size=384, seq_len=32, run_dir=tmp_path / "run", fim_rate=rate
        )

    plain, fim = prepare_data(config(0.0)), prepare_data(config(1.0))
    for a, b in zip(plain.validation, fim.validation, strict=True):
        assert a.equal(b)
    assert plain.manifest == fim.manifest
    begin = fim_ids(fim.tokenizer)[0]
    train = fim.batches.batch(40)[1]
    assert (train == begin).any()
    assert not (fim.validation[1] == begin).any()
    plain_tokens = encode_documents(plain.tokenizer, plain.corpus.train)
    assert sum(map(len, plain_tokens)) == plain.batches.sources[0].tokens_per_epoch
