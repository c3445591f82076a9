"""AdamW with BF16 moments: the right numbers, the right groups, and a state that keeps its dtype."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import lr_scheduler

from deepseek_ext.train import AdamW, build_optimizer


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.norm = nn.LayerNorm(3)
        self.experts = nn.Parameter(torch.randn(2, 4, 3))
        self.frozen = nn.Parameter(torch.randn(3, 3), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.norm(self.linear(x)) @ self.experts[0].T @ self.experts[1]).square().mean()


def test_it_is_torch_adamw_with_fp32_moments(rng: torch.Generator) -> None:
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)) for _ in range(2))
    a = AdamW([ours], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, moment_dtype=torch.float32)
    b = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for _ in range(20):
        gradient = torch.randn(3, 4, generator=rng)
        ours.grad, theirs.grad = gradient.clone(), gradient * 0.5
        a.step(grad_scale=0.5)
        b.step()
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=1e-7)


def test_decay_is_for_matrices_only() -> None:
    model = Small()
    decayed, kept = build_optimizer(model, lr=1e-3).param_groups
    assert decayed["weight_decay"] == 0.1
    assert {id(p) for p in decayed["params"]} == {id(model.linear.weight), id(model.experts)}
    assert kept["weight_decay"] == 0.0
    assert {id(p) for p in kept["params"]} == {
        id(model.linear.bias),
        id(model.norm.weight),
        id(model.norm.bias),
    }


def test_moments_stay_bf16_and_go_on_bit_equal() -> None:
    model = Small()
    optimizer = build_optimizer(model, lr=1e-2)
    inputs = torch.randn(6, 4, 5)

    def steps(net: Small, opt: AdamW, rows: torch.Tensor) -> None:
        for x in rows:
            opt.zero_grad()
            net(x).backward()
            opt.step()

    steps(model, optimizer, inputs[:3])
    twin = copy.deepcopy(model)
    other = build_optimizer(twin, lr=7.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert [group["step"] for group in other.param_groups] == [3, 3]
    for state in other.state.values():
        assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.bfloat16
    steps(model, optimizer, inputs[3:])
    steps(twin, other, inputs[3:])
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_parameter_without_gradient_is_left_alone() -> None:
    first, second = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = AdamW([first, second], lr=0.1)
    first.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(second, torch.ones(2, 2))
    assert (first < 1).all()


def test_closures_are_evaluated() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = AdamW([parameter], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == pytest.approx(2.0)
    assert (parameter < 1).all()


def take_steps(model: Small, optimizer: torch.optim.Optimizer, inputs: torch.Tensor) -> None:
    for x in inputs:
        optimizer.zero_grad()
        model(x).backward()
        optimizer.step()


def assert_goes_on_bit_equal(model: Small, optimizer: AdamW, twin: Small, other: AdamW) -> None:
    """Moments BF16 and equal now, and equal weights after three more steps."""
    for a, b in zip(optimizer.state.values(), other.state.values(), strict=True):
        for moment in ("exp_avg", "exp_avg_sq"):
            assert b[moment].dtype == torch.bfloat16
            assert a[moment].any()
            assert torch.equal(a[moment], b[moment])
    inputs = torch.randn(3, 4, 5)
    take_steps(model, optimizer, inputs)
    take_steps(twin, other, inputs)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def trained() -> tuple[Small, AdamW]:
    model = Small()
    optimizer = build_optimizer(model, lr=1e-2)
    take_steps(model, optimizer, torch.randn(3, 4, 5))
    return model, optimizer


def test_state_goes_through_torch_save(trained: tuple[Small, AdamW], tmp_path: Path) -> None:
    model, optimizer = trained
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    twin = copy.deepcopy(model)
    other = build_optimizer(twin, lr=7.0)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_goes_on_bit_equal(model, optimizer, twin, other)


def test_state_goes_through_distributed_checkpoint(trained: tuple[Small, AdamW], tmp_path: Path) -> None:
    """As a script of one's own would write it: by torch's state-dict functions, keyed by parameter name."""
    model, optimizer = trained
    dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=tmp_path, no_dist=True)
    twin = copy.deepcopy(model)
    other = build_optimizer(twin, lr=7.0)
    stored = {"optimizer": get_optimizer_state_dict(twin, other)}
    dcp.load(stored, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(twin, other, stored["optimizer"])
    assert [group["lr"] for group in other.param_groups] == [1e-2, 1e-2]
    assert [group["step"] for group in other.param_groups] == [3, 3]
    assert_goes_on_bit_equal(model, optimizer, twin, other)


def test_a_copy_goes_on_too(trained: tuple[Small, AdamW]) -> None:
    model, optimizer = trained
    twin, other = copy.deepcopy((model, optimizer))
    assert_goes_on_bit_equal(model, optimizer, twin, other)
    other.add_param_group({"params": [nn.Parameter(torch.ones(2))]})


def test_a_group_added_later_counts_its_own_steps() -> None:
    first, second, alone = (nn.Parameter(torch.ones(2, 3)) for _ in range(3))
    optimizer = AdamW([first], lr=0.1)
    first.grad = torch.ones(2, 3)
    optimizer.step()
    optimizer.add_param_group({"params": second, "lr": 0.2})
    assert optimizer.state[second]["exp_avg"].dtype == torch.bfloat16
    second.grad = torch.ones(2, 3)
    optimizer.step()
    assert [group["step"] for group in optimizer.param_groups] == [2, 1]
    alone.grad = torch.ones(2, 3)
    AdamW([alone], lr=0.2).step()
    assert torch.equal(second, alone)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step),
        lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=5),
        lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=8),
        lambda optimizer: lr_scheduler.SequentialLR(
            optimizer,
            [lr_scheduler.LinearLR(optimizer), lr_scheduler.ExponentialLR(optimizer, gamma=0.9)],
            milestones=[2],
        ),
    ],
    ids=["lambda", "cosine", "one cycle", "sequential"],
)
def test_schedulers_drive_it_like_torch_adamw(schedule: Callable[[Any], Any], rng: torch.Generator) -> None:
    """OneCycleLR also moves betas."""
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)) for _ in range(2))
    a = AdamW([ours], lr=1e-2, moment_dtype=torch.float32)
    b = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    schedules = schedule(a), schedule(b)
    rates = []
    for _ in range(6):
        ours.grad = torch.randn(3, 4, generator=rng)
        theirs.grad = ours.grad.clone()
        for optimizer, scheduler in zip((a, b), schedules, strict=True):
            optimizer.step()
            scheduler.step()
        rates.append(a.param_groups[0]["lr"])
        assert rates[-1] == b.param_groups[0]["lr"]
        torch.testing.assert_close(ours, theirs, rtol=4e-6, atol=1e-7)
    assert len(set(rates)) > 3


def test_a_rate_may_be_a_tensor() -> None:
    one, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    for parameter, lr in ((one, 0.5), (other, torch.tensor(0.5))):
        parameter.grad = torch.ones(2)
        AdamW([parameter], lr=lr).step()  # type: ignore[arg-type]
    assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_parameters_of_another_precision_are_refused(dtype: torch.dtype) -> None:
    good = nn.Parameter(torch.ones(2))
    optimizer = AdamW([good], lr=0.1)
    with pytest.raises(ValueError, match=rf"parameters must be float32, got {dtype} \[2, 3\]; keep FP32"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, 3, dtype=dtype))]})
    good.grad = torch.ones(2)
    optimizer.step()  # as if nothing had been asked
    assert (good < 1).all()


def test_the_state_of_another_optimizer_is_refused() -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    theirs = torch.optim.AdamW([parameter])
    theirs.step()
    with pytest.raises(ValueError, match="the state of another kind of optimizer"):
        AdamW([parameter], lr=0.1).load_state_dict(theirs.state_dict())


def test_fp32_moments_are_rounded_into_bf16() -> None:
    parameter = nn.Parameter(torch.ones(64))
    parameter.grad = torch.randn(64)
    wide = AdamW([parameter], lr=0.1, moment_dtype=torch.float32)
    wide.step()
    narrow = AdamW([parameter], lr=0.1)
    narrow.load_state_dict(wide.state_dict())
    for moment in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(narrow.state[parameter][moment], wide.state[parameter][moment].bfloat16())
