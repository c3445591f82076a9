"""The loss: its terms, denominators and gradients, against full logits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from deepseek_ext.nn import head
from deepseek_ext.nn.head import Head
from deepseek_ext.ops import accumulate_weight_gradients

Make = Callable[..., Any]


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunked_cross_entropy_is_cross_entropy(
    chunk: int, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "_CHUNK_BYTES", 4 * 50 * chunk)
    layer = Head(16, 50, "fp32")
    with torch.no_grad():
        layer.weight.normal_(generator=rng)
    hidden = torch.randn(3, 7, 16, generator=rng, requires_grad=True)
    targets = torch.randint(50, (3, 7), generator=rng)
    targets[0, 3] = targets[2, 6] = -100
    total, choice = layer.cross_entropy(hidden, targets, torch.tensor(1 / 19), choose=True)
    grads = torch.autograd.grad(3 * total, (hidden, layer.weight))

    logits = F.linear(hidden, layer.weight)
    wanted = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(total, wanted, rtol=1e-5, atol=0)
    assert torch.equal(choice, logits.argmax(-1))
    for a, b in zip(grads, torch.autograd.grad(3 * wanted, (hidden, layer.weight)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_full_logits_never_exist_in_training(
    make_model: Make, make_batch: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "_CHUNK_BYTES", 4 * 512 * 32)
    model, batch = make_model(intermediate_size=128), make_batch(4, 96)
    sizes: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            sizes.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    with Sizes():
        model.loss(*batch).total.backward()
    assert max(sizes) < 4 * 95 * 512  # of the MTP module, the smaller of the two


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loss_without_gradients_multiplies_by_the_head_once(precision: Any) -> None:
    rows, width, vocabulary = 9, 16, 50
    head = Head(width, vocabulary, precision)
    nn.init.normal_(head.weight)
    hidden, targets = torch.randn(rows, width, requires_grad=True), torch.arange(rows)
    for products, context in ((3, torch.enable_grad), (1, torch.no_grad), (1, torch.inference_mode)):
        with context(), FlopCounterMode(display=False) as counter:
            head.cross_entropy(hidden, targets, torch.ones(()))
        assert counter.get_total_flops() == products * 2 * rows * width * vocabulary


def test_terms_agree_with_the_logits(make_model: Make, make_batch: Make) -> None:
    model = make_model(num_nextn_predict_layers=2)
    tokens, targets = make_batch(2, 12)
    targets[0, :4] = -100
    out, loss = model(tokens), model.loss(tokens, targets, mtp_weight=0.7)
    count = 20

    def nats(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum") / count

    torch.testing.assert_close(loss.main, nats(out.logits, targets))
    for k, (got, logits) in enumerate(zip(loss.mtp, out.mtp_logits, strict=True), start=1):
        torch.testing.assert_close(got, nats(logits, targets[:, k:]))
    torch.testing.assert_close(loss.total, loss.main + 0.35 * (loss.mtp[0] + loss.mtp[1]) + loss.balance)
    # f_e P_e sums to at least 1 up to the unevenness of one sequence: three routers of the main model, two of
    # MTP.
    assert 0.5e-4 * 4 < loss.balance < 3e-4 * 4

    for k, (share, logits) in enumerate(zip(loss.acceptance, out.mtp_logits, strict=True), start=1):
        counted = targets[:, k:] != -100
        same = logits.argmax(-1) == out.logits[:, k:].argmax(-1)
        torch.testing.assert_close(share, same[counted].float().mean())


def test_weights_of_the_terms(make_model: Make, make_batch: Make) -> None:
    model = make_model()
    batch = make_batch(2, 12)
    plain = model.loss(*batch, mtp_weight=0.0, balance_alpha=0.0)
    assert plain.balance == 0
    assert plain.total == plain.main
    default = model.loss(*batch)
    torch.testing.assert_close(default.total, default.main + 0.3 * default.mtp[0] + default.balance)
    torch.testing.assert_close(model.loss(*batch, balance_alpha=1e-2).balance, 100 * default.balance)
    alone = model.loss(*batch, use_mtp=False)
    assert alone.mtp == alone.acceptance == []
    assert alone.main == default.main


@pytest.mark.parametrize("accumulate", [False, True])
def test_the_gradient_does_not_depend_on_the_split(
    accumulate: bool, make_model: Make, make_batch: Make
) -> None:
    """1 micro-batch of 8 sequences against 4 of 2, with padding and ignored targets, by the step's counts."""
    model = make_model(num_nextn_predict_layers=2, balance_alpha=0.1)
    tokens, targets = make_batch(8, 16)
    valid = torch.arange(16) < torch.tensor([16, 16, 11, 16, 5, 16, 16, 13])[:, None]
    targets[~valid] = targets[1, :9] = targets[6, 3:] = -100
    count = int((targets != -100).sum())

    def gradients(parts: int) -> tuple[float, dict[str, torch.Tensor], torch.Tensor]:
        model.zero_grad()
        total = 0.0
        for *part, part_valid in zip(*(t.chunk(parts) for t in (tokens, targets, valid)), strict=True):
            with accumulate_weight_gradients() if accumulate else nullcontext():
                loss = model.loss(*part, num_targets=count, num_sequences=torch.tensor(8), valid=part_valid)
            loss.total.backward()
            total += loss.total.item()
        load = model.router_load()
        model.update_router_bias(0.0)
        return total, {name: p.grad.clone() for name, p in model.named_parameters()}, load

    whole, split = gradients(1), gradients(4)
    assert whole[0] == pytest.approx(split[0], rel=1e-5)
    assert torch.equal(whole[2], split[2])
    for name, grad in whole[1].items():
        assert (grad - split[1][name]).norm() <= 1e-5 * grad.norm(), name


def test_padding_counts_nowhere(make_model: Make, make_batch: Make) -> None:
    """A padded sequence has the loss, gradient and load of the sequence alone, whatever the padding holds."""
    model = make_model(num_nextn_predict_layers=1, balance_alpha=0.1)
    tokens, targets = make_batch(1, 20)
    valid = torch.arange(20)[None] < 15
    padded_targets = targets.masked_fill(~valid, -100)

    def run(*batch: torch.Tensor, **options: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss = model.loss(*batch, **options).total
        load = model.router_load()
        model.update_router_bias(0.0)
        return loss, load

    alone, padded = run(tokens[:, :15], targets[:, :15]), run(tokens, padded_targets, valid=valid)
    # Row 14 of depth 1 predicts targets[15] from token 15, which is padding: with padding it has no target,
    # and without padding the row does not exist.
    torch.testing.assert_close(alone[0], padded[0], rtol=1e-5, atol=0)
    assert torch.equal(alone[1], padded[1])


def test_wrong_arguments_are_refused(make_model: Make, make_batch: Make) -> None:
    model = make_model(max_position_embeddings=16)
    tokens, targets = make_batch(2, 16)
    for call, message in [
        (
            lambda: model(tokens[0]),
            "tokens must be int64 .B, T., got torch.int64 .16.; one sequence is tokens.None.",
        ),
        (lambda: model(tokens.int()), "tokens must be int64 .B, T., got torch.int32"),
        (lambda: model(make_batch(1, 17)[0]), "1 to 16 tokens .max_position_embeddings., got 17"),
        (
            lambda: model.loss(tokens, targets[:, 1:]),
            "targets must be torch.int64 .2, 16. like tokens, got .*2, 15",
        ),
        (lambda: model.loss(tokens, targets, valid=tokens), "valid must be torch.bool"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
