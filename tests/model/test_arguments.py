"""What a model says of tokens and targets that are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[1, 2]], r"tokens must be an int64 tensor \[B, T\], got a list; write torch.tensor"),
        (torch.ones(1, 3), r"got torch.float32 \[1, 3\]; write tokens.long\(\)"),
        (torch.ones(1, 3, dtype=torch.int32), r"got torch.int32 \[1, 3\]; write tokens.long\(\)"),
        (
            torch.tensor([1, 2]),
            r"must be int64 \[B, T\], got torch.int64 \[2\]; one sequence is tokens\[None\]",
        ),
        (
            torch.zeros(0, 4, dtype=torch.int64),
            r"at least one sequence of one token, got \[0, 4\]; leave empty",
        ),
        (
            torch.zeros(2, 0, dtype=torch.int64),
            r"at least one sequence of one token, got \[2, 0\]; leave empty",
        ),
        (
            torch.zeros(1, 9, dtype=torch.int64),
            r"1 to 8 tokens \(max_position_embeddings\), got 9; split it",
        ),
        (torch.tensor([[1, 50]]), r"tokens must be ids from 0 to 49 \(vocab_size\), got 50; encode the text"),
        (
            torch.tensor([[-1, 49]]),
            r"tokens must be ids from 0 to 49 \(vocab_size\), got -1; encode the text",
        ),
        (torch.tensor([[-100]]), "got -100; encode the text with the model's own tokenizer"),
    ],
)
def test_tokens_that_are_none(tokens: Any, message: str, make_model: Make) -> None:
    model = make_model(vocab_size=50, max_position_embeddings=8)
    calls = [model, lambda tokens: model.decode(tokens, model.new_cache(1, 8)), lambda t: model.loss(t, t)]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call(tokens)


@pytest.mark.parametrize(
    ("precision", "name", "width", "wanted"),
    [("bf16", "hidden_size", 68, 72), ("fp32", "moe_intermediate_size", 30, 32)],
)
def test_widths_that_torch_cannot_multiply(
    precision: str, name: str, width: int, wanted: int, make_model: Make
) -> None:
    with pytest.raises(ValueError, match=f"precision {precision} needs {name} .* write {wanted}, or"):
        make_model(precision, **{name: width})
    tokens = torch.zeros(1, 3, dtype=torch.int64)
    make_model("fp8", **{name: width}).loss(tokens, tokens).total.backward()
    make_model(precision, **{name: wanted}).loss(tokens, tokens).total.backward()


@pytest.mark.parametrize("target", [-3, -101, 50, 2**40])
def test_targets_that_are_none(target: int, make_model: Make) -> None:
    model = make_model(vocab_size=50)
    tokens = torch.zeros(1, 3, dtype=torch.int64)
    assert model.loss(tokens, torch.tensor([[0, -100, 49]])).total.isfinite()
    with pytest.raises(ValueError, match=rf"targets must be ids from 0 to 49 .* or -100, got {target};"):
        model.loss(tokens, torch.tensor([[0, -100, target]]))


def test_values_that_are_not_there_are_not_read(make_model: Make) -> None:
    """On another device than the CPU a look at the ids would wait for it."""
    model = make_model(vocab_size=50)
    model._check_tokens(torch.zeros(1, 3, dtype=torch.int64, device="meta"))
