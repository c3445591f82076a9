"""AdamW with BF16 moments: the right numbers, the right groups, and a state that keeps its dtype."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from deepseek_ext.train import AdamW, build_optimizer


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.norm = nn.LayerNorm(3)
        self.experts = nn.Parameter(torch.randn(2, 4, 3))
        self.frozen = nn.Parameter(torch.randn(3, 3), requires_grad=False)
        self.epochs = 0

    def weights_changed(self) -> None:
        self.epochs += 1

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


def test_weights_changed_is_called_once_a_step() -> None:
    model = Small()
    optimizer = build_optimizer(model, lr=1e-3)
    for step in range(1, 4):
        model(torch.randn(2, 5)).backward()
        optimizer.step()
        assert model.epochs == step


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
