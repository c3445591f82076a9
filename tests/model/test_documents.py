"""Attention confined to documents: packed into one sequence, each says what it says alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

Make = Callable[..., Any]
LENGTHS = [7, 1, 12, 2, 10]


def starts_of(lengths: list[int], batch: int) -> Tensor:
    starts, at = [], 0
    for length in lengths:
        starts += [at] * length
        at += length
    return torch.tensor(starts, dtype=torch.int32).expand(batch, -1).contiguous()


def test_packed_documents_give_what_each_gives_alone(make_model: Make, make_batch: Make) -> None:
    model = make_model(num_nextn_predict_layers=2).eval()
    tokens, _ = make_batch(2, sum(LENGTHS))
    with torch.no_grad():
        packed = model(tokens, document_starts=starts_of(LENGTHS, 2))
        at = 0
        for length in LENGTHS:
            alone = model(tokens[:, at : at + length])
            torch.testing.assert_close(packed.logits[:, at : at + length], alone.logits, rtol=1e-5, atol=1e-5)
            for k, (ours, theirs) in enumerate(zip(packed.mtp_logits, alone.mtp_logits, strict=True), 1):
                ours = ours[:, at : at + max(length - k, 0)]
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
            at += length


def test_loss_gradient_and_load_are_those_of_the_documents(make_model: Make, make_batch: Make) -> None:
    """The MTP targets past an end count nowhere: not in the loss, not in the load of an expert."""
    tokens, targets = make_batch(2, sum(LENGTHS))
    results = []
    for packed in (True, False):
        model = make_model(num_nextn_predict_layers=2, balance_loss="none")
        ends = [sum(LENGTHS)] if packed else torch.tensor(LENGTHS).cumsum(0).tolist()
        main, mtp, begin = 0.0, [0.0, 0.0], 0
        for end in ends:
            starts = starts_of(LENGTHS, 2) if packed else None
            loss = model.loss(
                tokens[:, begin:end],
                targets[:, begin:end],
                num_targets=tokens.numel(),
                document_starts=starts,
            )
            loss.total.backward()
            main += loss.main.item()
            mtp = [a + b.item() for a, b in zip(mtp, loss.mtp, strict=True)]
            begin = end
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((main, mtp, model.router_load(), gradients))
    (main, mtp, load, gradients), (main_alone, mtp_alone, load_alone, gradients_alone) = results
    assert main == pytest.approx(main_alone, rel=1e-5)
    assert mtp == pytest.approx(mtp_alone, rel=1e-5)
    assert torch.equal(load, load_alone)
    assert gradients.keys() == gradients_alone.keys()
    for name, gradient in gradients.items():
        largest = gradients_alone[name].abs().max().item()
        torch.testing.assert_close(gradient, gradients_alone[name], rtol=1e-4, atol=1e-5 * largest)


def test_a_token_is_not_seen_from_the_next_document(make_model: Make, make_batch: Make) -> None:
    """In FP8 too, where rows share nothing else: change a token, and only its own document moves."""
    model = make_model("fp8").eval()
    tokens, _ = make_batch(1, sum(LENGTHS))
    changed = tokens.clone()
    changed[0, 9] = (changed[0, 9] + 1) % 512  # in the third document, positions 8 to 19
    with torch.no_grad():
        a, b = (model(t, document_starts=starts_of(LENGTHS, 1)).logits[0] for t in (tokens, changed))
    moved = (a - b).abs().amax(-1) > 1e-4 * a.abs().amax(-1)
    assert moved[9:20].all()
    assert not moved[:9].any()
    assert not moved[20:].any()


def test_one_document_is_no_masking(make_model: Make, make_batch: Make) -> None:
    model = make_model().eval()
    tokens, targets = make_batch(2, 16)
    starts = torch.zeros(2, 16, dtype=torch.int32)
    with torch.no_grad():
        ours = model.loss(tokens, targets, document_starts=starts)
        theirs = model.loss(tokens, targets)
    torch.testing.assert_close(ours.total, theirs.total, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("starts", "message"),
    [
        (torch.zeros(1, 4), r"document_starts must be torch.int32 \[1, 4\] like tokens, got torch.float32"),
        (torch.zeros(1, 3, dtype=torch.int32), r"like tokens, got torch.int32 \[1, 3\]"),
        (torch.tensor([[0, 0, 3, 3]], dtype=torch.int32), "not after the position itself"),
        (torch.tensor([[0, -1, 0, 0]], dtype=torch.int32), "not negative"),
        (torch.tensor([[0, 1, 0, 0]], dtype=torch.int32), "nowhere less than the one before"),
    ],
)
def test_what_are_no_starts_is_refused(starts: Tensor, message: str, make_model: Make) -> None:
    model = make_model()
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        model(tokens, document_starts=starts)
    with pytest.raises(ValueError, match=message):
        model.loss(tokens, tokens, document_starts=starts)
