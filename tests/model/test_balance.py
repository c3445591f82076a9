"""The choices of balance loss: what each adds to the loss, and what each does to the experts' load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from deepseek_ext import ModelConfig
from deepseek_ext.config import BalanceLoss
from deepseek_ext.nn.moe import Router
from deepseek_ext.train import TrainConfig

Make = Callable[..., Any]


def by_formula(logits: Tensor, indices: Tensor, sequences: int, alpha: float) -> float:
    """Equations 17 to 20, one sequence, one expert at a time, in FP64."""
    experts, top_k = logits.shape[1], indices.shape[1]
    length = len(logits) // sequences
    total = 0.0
    for start in range(0, len(logits), length):
        scores = logits[start : start + length].double().sigmoid()
        shares = scores / scores.sum(1, keepdim=True)
        for e in range(experts):
            f = experts / (top_k * length) * (indices[start : start + length] == e).sum().item()
            total += alpha * f * shares[:, e].mean().item()
    return total / sequences


def routed(model: Any, run: Callable[[], Any]) -> tuple[Any, list[tuple[Tensor, Tensor]]]:
    """What run() returns, and the logits and indices of each router meanwhile."""
    seen: list[tuple[Tensor, Tensor]] = []

    def note(router: Router, args: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
        x = args[0].value.detach().flatten(0, -2)
        seen.append((x.float() @ router.weight.detach().t(), output[1]))

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, Router)]
    result = run()
    for hook in hooks:
        hook.remove()
    return result, seen


@pytest.mark.parametrize("choice", ["sequence", "batch"])
@pytest.mark.parametrize("num_sequences", [None, 12])
def test_value(choice: str, num_sequences: int | None, make_model: Make, make_batch: Make) -> None:
    model = make_model(balance_loss=choice, balance_alpha=0.5)
    batch = make_batch(3, 20)
    loss, routers = routed(model, lambda: model.loss(*batch, num_sequences=num_sequences))
    assert len(routers) == 3  # two layers of experts, and the MTP module's, which has a token less
    parts = 3 if choice == "sequence" else 1
    wanted = sum(by_formula(*router, parts, 0.5) for router in routers)
    other = sum(by_formula(*router, 4 - parts, 0.5) for router in routers)
    share = 1 if num_sequences is None else 3 / num_sequences
    assert loss.balance.item() == pytest.approx(wanted * share, rel=1e-5)
    assert loss.balance.item() != pytest.approx(other * share, rel=1e-3), "the choices differ here"
    torch.testing.assert_close(loss.total, loss.main + 0.3 * loss.mtp[0] + loss.balance)


def test_none_adds_no_term(make_model: Make, make_batch: Make) -> None:
    called: set[str] = set()

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    batch = make_batch(2, 12)
    gradients = []
    for options in ({"balance_loss": "none", "balance_alpha": 0.5}, {"balance_alpha": 0.0}):
        model = make_model(**options)
        with Record():
            loss = model.loss(*batch)
        assert loss.balance == 0
        loss.total.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert "route" in called
    assert "sequence_balance_loss" not in called
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_an_alpha_for_no_loss_is_refused(make_model: Make, make_batch: Make) -> None:
    model = make_model(balance_loss="none")
    with pytest.raises(ValueError, match=r'balance_alpha must be left out .* balance_loss="none", got 0\.1'):
        model.loss(*make_batch(1, 8), balance_alpha=0.1)


def test_batch_wise_each_micro_batch_is_balanced_by_itself(make_model: Make, make_batch: Make) -> None:
    """A mean of micro-batches' losses: not the whole batch's; of one sequence each, the sequence-wise one."""
    tokens, targets = make_batch(4, 16)

    def balance(choice: str, parts: int) -> float:
        model = make_model(balance_loss=choice, balance_alpha=1.0)
        return sum(
            model.loss(*part, num_sequences=4).balance.item()
            for part in zip(tokens.chunk(parts), targets.chunk(parts), strict=True)
        )

    assert balance("batch", 4) == pytest.approx(balance("sequence", 1), rel=1e-5)
    assert balance("sequence", 4) == pytest.approx(balance("sequence", 1), rel=1e-5)
    assert balance("batch", 1) < 0.999 * balance("batch", 4)


@pytest.mark.parametrize(
    ("choice", "alpha", "rate"),
    [
        ("sequence", 1e-4, 0.02),
        ("batch", 1e-4, 0.02),
        ("none", 0.0, 0.02),
        ("sequence", 0.1, 0.0),
        ("batch", 0.1, 0.0),
    ],
    ids=["bias and sequence loss", "bias and batch loss", "bias", "sequence loss", "batch loss"],
)
def test_training_evens_the_load(
    choice: str, alpha: float, rate: float, make_model: Make, make_batch: Make
) -> None:
    """On one batch, with each of these and with nothing: MaxVio at the end is at most 0.6 of that."""
    batch = make_batch(4, 32)

    def train(choice: str, alpha: float, rate: float) -> tuple[float, float, float]:
        model = make_model(balance_loss=choice, balance_alpha=alpha, num_nextn_predict_layers=0)
        routers = [module for module in model.modules() if isinstance(module, Router)]
        with torch.no_grad():
            for router in routers:
                router.e_score_correction_bias.zero_()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(30):
            loss = model.loss(*batch)
            loss.total.backward()
            optimizer.step()
            optimizer.zero_grad()
            model.weights_changed()
            load = model.router_load().double()
            model.update_router_bias(rate)
            losses.append(loss.main.item())
        biased = max(router.e_score_correction_bias.abs().max().item() for router in routers)
        assert (biased > 0) == (rate > 0)
        return (load.amax(1) / load.mean(1) - 1).max().item(), losses[0], losses[-1]

    alone, _, _ = train("none", 0.0, 0.0)
    evened, first, last = train(choice, alpha, rate)
    print(choice, alpha, rate, alone, evened, first, last)
    assert last < 0.8 * first, "the model still learns"
    assert evened < 0.6 * alone


def test_configuration() -> None:
    config = ModelConfig.preset("tiny", balance_loss="batch")
    assert ModelConfig.from_hf(config.to_hf()).balance_loss == "batch"
    assert ModelConfig.from_hf({**config.to_hf(), "balance_loss": "sequence"}).balance_loss == "sequence"
    with pytest.raises(ValueError, match="balance_loss must be one of sequence, batch, none, got 'expert'"):
        ModelConfig.preset("tiny", balance_loss="expert")


@pytest.mark.parametrize("choice", BalanceLoss.__args__)
def test_a_run_can_choose(choice: Any) -> None:
    import tyro

    config = tyro.cli(TrainConfig, args=["--balance-loss", choice, "--balance-alpha", "0.01"])
    assert config.model_config().balance_loss == choice
    assert TrainConfig.from_json(config.to_json()) == config
    stored = {key: value for key, value in TrainConfig().to_json().items() if key != "balance_loss"}
    assert TrainConfig.from_json(stored) == TrainConfig(), "runs from before the choice go on"
