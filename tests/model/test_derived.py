"""What the model's layers keep of their weights is renewed, whoever writes the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from deepseek_ext import Float8Linear

Make = Callable[..., Any]


def write_by_optimizer(**options: Any) -> Callable[[nn.Module], None]:
    def step(model: nn.Module) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, **options)
        optimizer.step()

    return step


@torch.no_grad()
def in_place(model: nn.Module) -> None:
    for p in model.parameters():
        p.mul_(1.5)


@torch.no_grad()
def from_a_vector(model: nn.Module) -> None:
    vector_to_parameters(torch.cat([1.5 * p.flatten() for p in model.parameters()]), model.parameters())


def load(assign: bool) -> Callable[[nn.Module], None]:
    def write(model: nn.Module) -> None:
        state = {name: t * 1.5 if t.is_floating_point() else t for name, t in model.state_dict().items()}
        model.load_state_dict(state, assign=assign)

    return write


WRITES = {
    "fused optimizer": write_by_optimizer(fused=True),
    "foreach optimizer": write_by_optimizer(foreach=True),
    "in place": in_place,
    "from a vector": from_a_vector,
    "load": load(assign=False),
    "load by assignment": load(assign=True),
}


@pytest.mark.parametrize("precision", ["fp8", "bf16"])
@pytest.mark.parametrize("write", WRITES)
def test_a_model_sees_what_was_written(
    write: str, precision: str, make_model: Make, make_batch: Make
) -> None:
    model = make_model(precision)
    batch = make_batch(1, 16)
    before = model.loss(*batch).total
    before.backward()
    WRITES[write](model)
    twin = copy.deepcopy(model)  # copies keep nothing
    after = model.loss(*batch).total
    assert torch.equal(after, twin.loss(*batch).total)
    assert not torch.equal(after, before)


def test_nothing_is_derived_twice(make_model: Make) -> None:
    layer = Float8Linear(128, 128)
    made: list[Tensor] = []

    def make(weight: Tensor) -> Tensor:
        made.append(weight)
        return weight * 2

    first = layer.derive(make, layer.weight)
    assert layer.derive(make, layer.weight) is first
    assert not first.requires_grad
    layer.weights_changed()
    assert layer.derive(make, layer.weight) is not first
    assert len(made) == 2


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        layer = Float8Linear(128, 8)
        x = torch.ones(1, 128)
        y = layer(x)
        layer.weight.mul_(2)
        layer.weights_changed()
        torch.testing.assert_close(layer(x) - layer.bias, 2 * (y - layer.bias))
