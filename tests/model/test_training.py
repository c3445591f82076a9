"""Training: the loss falls in every precision, loads are counted, derived weights follow the parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from deepseek_ext.model import DeepseekV3

Make = Callable[..., Any]
PRECISIONS = ["fp8", "bf16", "fp32"]
# Relative errors of a parameter's gradient against fp32. An operand rounded to E4M3 is off by 2^-5 on
# average, one rounded to BF16 by 2^-9, and the errors of some 30 products one after the other add like a
# random walk; measured: 0.26 and 0.019 at worst. Leaving out a product, or a scale, is an error of about 1.
FP8_ERROR, BF16_ERROR = 0.35, 0.03


def train(model: DeepseekV3, batch: tuple[torch.Tensor, torch.Tensor], steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        loss = model.loss(*batch)
        loss.total.backward()
        losses.append(loss.main.item())
        optimizer.step()
        optimizer.zero_grad()
        model.weights_changed()
        model.update_router_bias(1e-3)
    return losses


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_loss_falls(precision: str, make_model: Make, make_batch: Make) -> None:
    """A batch is learnt by heart: from ln 512 = 6.2 nats to under half of it."""
    losses = train(make_model(precision, std=0.02), make_batch(4, 48), 30)
    assert losses[0] == pytest.approx(6.24, abs=0.2)
    assert losses[-1] < 3.0


@pytest.mark.parametrize("precision", PRECISIONS)
def test_parameters_and_gradients_are_fp32(precision: str, make_model: Make, make_batch: Make) -> None:
    model = make_model(precision)
    loss = model.loss(*make_batch(2, 16))
    loss.total.backward()
    assert loss.total.dtype == loss.main.dtype == loss.balance.dtype == torch.float32
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32, name
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name
    stream = torch.float32 if precision == "fp32" else torch.bfloat16
    assert model(make_batch(1, 4)[0]).logits.dtype == stream


def gradients(model: DeepseekV3, batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.loss(*batch).total.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def test_fp8_gradients_are_close_to_bf16(make_model: Make, make_batch: Make) -> None:
    """Every expert is chosen, so that no rounding changes a route."""
    everyone = {"num_experts_per_tok": 8, "n_group": 1, "topk_group": 1}
    batch = make_batch(4, 64)
    exact, bf16, fp8 = (
        gradients(make_model(precision, **everyone), batch) for precision in ("fp32", "bf16", "fp8")
    )
    for name, grad in exact.items():
        for got, bound in ((bf16[name], BF16_ERROR), (fp8[name], FP8_ERROR)):
            assert (got - grad).norm() < bound * grad.norm(), name


@pytest.mark.parametrize("precision", PRECISIONS)
def test_load_is_counted_in_training_only(precision: str, make_model: Make, make_batch: Make) -> None:
    model = make_model(precision, num_nextn_predict_layers=2)
    tokens, targets = make_batch(2, 16)
    assert model.router_load().shape == (4, 8)
    assert model.router_load().dtype == torch.int32
    model.loss(tokens, targets)
    model.loss(tokens, targets)
    load = model.router_load()
    # Two micro-batches of 2 sequences, top-2; depth k runs on k tokens less a sequence.
    assert load.sum(1).tolist() == [4 * 16 * 2, 4 * 16 * 2, 4 * 15 * 2, 4 * 14 * 2]
    model.eval()
    with torch.no_grad():
        model(tokens)
        model.loss(tokens, targets)
    assert torch.equal(model.router_load(), load)

    names = [name for name, _ in model.named_buffers() if name.endswith("e_score_correction_bias")]
    before = torch.stack([model.state_dict()[name].clone() for name in names])
    model.update_router_bias(0.01)
    after = torch.stack([model.state_dict()[name] for name in names])
    mean = load.sum(1, keepdim=True) / 8
    torch.testing.assert_close(after - before, 0.01 * torch.sign(mean - load), atol=1e-7, rtol=1e-5)
    assert after.dtype == torch.float32
    assert not model.router_load().any()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_derived_weights_follow_the_parameters(precision: str, make_model: Make, make_batch: Make) -> None:
    model = make_model(precision).eval()
    other = make_model(precision, std=0.06).eval()
    tokens, _ = make_batch(1, 8)
    with torch.no_grad():
        first, wanted = model(tokens).logits, other(tokens).logits
        assert not torch.equal(first, wanted)
        # Written without a new version, as an all-gather into a shard's storage does.
        for target, source in zip(model.parameters(), other.parameters(), strict=True):
            target.data.copy_(source)
        model.weights_changed()
        assert torch.equal(model(tokens).logits, wanted)
        # Written in place by an optimizer that says nothing.
        model.lm_head.weight.mul_(2)
        assert torch.equal(model(tokens).logits, 2 * wanted)
        model.load_state_dict(other.state_dict())
        assert torch.equal(model(tokens).logits, wanted)
        assert torch.equal(copy.deepcopy(model)(tokens).logits, wanted)


def test_a_layer_can_have_another_precision(make_model: Make, make_batch: Make) -> None:
    batch = make_batch(2, 16)
    plain = make_model("bf16")
    mixed = DeepseekV3(
        plain.config, precision="bf16", precision_overrides={"model.layers.1.*": "fp32"}, seed=3
    )
    mixed.load_state_dict(plain.state_dict())
    assert mixed.model.layers[1].mlp.experts.precision == "fp32"
    assert mixed.model.layers[0].mlp.precision == mixed.lm_head.precision == "bf16"
    a, b = plain.loss(*batch), mixed.loss(*batch)
    assert a.main != b.main
    torch.testing.assert_close(a.main, b.main, rtol=1e-2, atol=0)
    b.total.backward()


@pytest.mark.parametrize(("model", "head"), [("bf16", "fp32"), ("fp32", "bf16")])
def test_the_head_can_have_another_precision(
    make_model: Make, make_batch: Make, model: str, head: str
) -> None:
    tokens, targets = make_batch(2, 16)
    plain = make_model(model)
    mixed = DeepseekV3(plain.config, precision=model, precision_overrides={"lm_head": head}, seed=3)
    mixed.load_state_dict(plain.state_dict())
    logits = mixed(tokens).logits
    assert logits.dtype == (torch.float32 if head == "fp32" else torch.bfloat16)
    torch.testing.assert_close(logits, plain(tokens).logits, rtol=2e-2, atol=2e-2, check_dtype=False)
    mixed.loss(tokens, targets).total.backward()
    assert mixed.lm_head.weight.grad.dtype == torch.float32


def test_the_model_is_never_cast(make_model: Make) -> None:
    model = make_model("bf16")
    with pytest.raises(ValueError, match="stay float32 whatever the precision; write DeepseekV3"):
        model.to(torch.bfloat16)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert model.to("meta").lm_head.weight.is_meta


def test_an_evaluation_makes_no_gradient(make_model: Make, make_batch: Make) -> None:
    model = make_model("bf16").eval()
    batch = make_batch(2, 16)
    with torch.inference_mode():
        quiet = model.loss(*batch)
    assert not quiet.total.requires_grad
    model.loss(*batch).total.backward()  # what the evaluation derived from the weights serves training too
    torch.testing.assert_close(quiet.total, model.loss(*batch).total.detach())
