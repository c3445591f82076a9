"""No prediction depends on a token that it must not see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

Make = Callable[..., Any]


@pytest.mark.parametrize("precision", ["fp32", "fp8"])
def test_a_changed_token_moves_only_what_may_see_it(
    precision: str, make_model: Make, make_batch: Make
) -> None:
    """Token p changes: rows i of depth k (0: main model) with i + k < p stay, and the next one moves."""
    model = make_model(precision, num_nextn_predict_layers=2).eval()
    tokens, _ = make_batch(1, 24)
    with torch.no_grad():
        before = model(tokens)
        for position in (1, 11, 22, 23):
            changed = tokens.clone()
            changed[0, position] = (changed[0, position] + 1) % 512
            after = model(changed)
            pairs = zip([before.logits, *before.mtp_logits], [after.logits, *after.mtp_logits], strict=True)
            for k, (a, b) in enumerate(pairs):
                # Not exactly zero: torch's product for an expert may round otherwise with other rows beside
                # it.
                moved = ((a - b).abs().amax(-1) > 1e-4 * a.abs().amax(-1))[0]
                assert moved.shape == (24 - k,)
                first = max(position - k, 0)
                assert not moved[:first].any(), f"depth {k} sees token {position} too early"
                assert moved[first], f"depth {k} does not see token {position} at all"


def test_sequences_of_a_batch_do_not_see_each_other(make_model: Make, make_batch: Make) -> None:
    model = make_model(num_nextn_predict_layers=2).eval()
    tokens, _ = make_batch(3, 16)
    with torch.no_grad():
        together, alone = model(tokens), model(tokens[1:2])
    torch.testing.assert_close(together.logits[1:2], alone.logits, rtol=1e-5, atol=1e-5)
    for a, b in zip(together.mtp_logits, alone.mtp_logits, strict=True):
        torch.testing.assert_close(a[1:2], b, rtol=1e-5, atol=1e-5)


def test_a_sequence_may_end_before_the_last_depth(make_model: Make, make_batch: Make) -> None:
    model = make_model(num_nextn_predict_layers=2)
    tokens, targets = make_batch(2, 1)
    assert [list(x.shape) for x in model(tokens).mtp_logits] == [[2, 0, 512], [2, 0, 512]]
    loss = model.loss(tokens, targets)
    assert loss.mtp == [0, 0]
    loss.total.backward()
