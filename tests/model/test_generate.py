"""Generation, greedy and drawn, against the full forward."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from deepseek_ext.generate import generate, generate_tokens

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One token a byte, and an end-of-document token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    built = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens(["<|eos|>"])
    return built


def greedy(model: Any, tokens: list[int], count: int) -> list[int]:
    tokens = list(tokens)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens]), use_mtp=False).logits[0, -1].argmax()))
    return tokens[-count:]


def test_greedy_text_is_that_of_the_full_forward(make_model: Make, tokenizer: Tokenizer) -> None:
    model = make_model(vocab_size=257, std=0.2)
    wanted = greedy(model.eval(), tokenizer.encode("def f(x").ids, 20)
    stop = next(t for t in range(257) if t not in wanted)
    assert len(set(wanted)) > 3
    assert generate(model, tokenizer, "def f(x", max_new_tokens=20, stop_token=stop) == tokenizer.decode(
        wanted
    )
    stopped = generate(model, tokenizer, "def f(x", max_new_tokens=20, stop_token=wanted[7])
    assert stopped == tokenizer.decode(wanted[: wanted.index(wanted[7])])


def test_the_mode_and_the_load_are_left_alone(make_model: Make) -> None:
    model = make_model().train()
    before = model.router_load()
    first = list(generate_tokens(model, [1, 2, 3], max_new_tokens=5))
    assert model.training
    assert torch.equal(model.router_load(), before)
    assert list(islice(generate_tokens(model.eval(), [1, 2, 3], max_new_tokens=50), 5)) == first
    assert not model.training


def test_drawn_tokens_follow_the_seed_and_the_temperature(make_model: Make) -> None:
    model = make_model(std=0.2)
    runs = [
        list(generate_tokens(model, [5, 6], max_new_tokens=30, temperature=t, seed=s))
        for t, s in [(1.0, 1), (1.0, 1), (1.0, 2), (1e-4, 3), (1e-300, 3)]
    ]
    assert runs[0] == runs[1] != runs[2]
    assert runs[3] == runs[4] == list(generate_tokens(model, [5, 6], max_new_tokens=30))


def test_wrong_arguments_are_refused(make_model: Make, tokenizer: Tokenizer) -> None:
    model = make_model(max_position_embeddings=8)
    for options, message in [
        ({"speculate": True}, "speculate=True is not available in this version; leave it out"),
        ({"temperature": -1.0}, "temperature must not be negative, got -1.0; 0 is greedy"),
        ({"temperature": float("nan")}, "temperature must not be negative, got nan"),
        ({"max_new_tokens": -1}, "max_new_tokens must not be negative, got -1; write 0 or more"),
        ({"max_new_tokens": 9}, "1 prompt tokens and 9 new ones exceed max_position_embeddings .8."),
    ]:
        with pytest.raises(ValueError, match=message):
            generate(model, tokenizer, "x", **options)
    with pytest.raises(ValueError, match="the prompt has no tokens"):
        generate(model, tokenizer, "", max_new_tokens=1)
    with pytest.raises(ValueError, match=r"the prompt is no text, got 'x.udcff'; write it in UTF-8"):
        generate(model, tokenizer, "x\udcff", max_new_tokens=1)
    assert generate(model, tokenizer, "x", max_new_tokens=0) == ""
    with pytest.raises(ValueError, match=r"tokens must be ids from 0 to 99 .vocab_size., got \d+; encode"):
        generate(make_model(vocab_size=100), tokenizer, "é", max_new_tokens=1)
