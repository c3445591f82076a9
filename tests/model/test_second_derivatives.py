"""A gradient penalty through the model: every layer has first derivatives only, and says so."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepseek_ext.nn.head import Head
from deepseek_ext.nn.linear import Linear
from deepseek_ext.nn.norm import RMSNorm
from deepseek_ext.ops import accumulate_weight_gradients

Make = Callable[..., Any]
PRECISIONS = ["fp8", "bf16", "fp32"]


def filled(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.1)
    return layer


@pytest.mark.parametrize("precision", PRECISIONS)
def test_through_the_model(precision: str, make_model: Make, make_batch: Make) -> None:
    model, (tokens, targets) = make_model(precision), make_batch(2, 12)
    parameters = dict(model.named_parameters())

    def gradients(create_graph: bool) -> dict[str, Tensor]:
        loss = model.loss(tokens, targets).total
        grads = torch.autograd.grad(loss, list(parameters.values()), create_graph=create_graph)
        return dict(zip(parameters, grads, strict=True))

    wanted, grads = gradients(False), gradients(True)
    for name, grad in grads.items():
        assert torch.equal(grad, wanted[name]), name
        with pytest.raises(NotImplementedError, match="second derivatives are not implemented"):
            torch.autograd.grad(grad.norm(), parameters[name], retain_graph=True)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_through_single_layers(precision: str) -> None:
    x = torch.randn(3, 128, requires_grad=True)
    target = torch.tensor([1, 5, -100])

    def loss(head: Head, x: Tensor) -> Tensor:
        return head.cross_entropy(x, target, torch.ones(()))[0]

    layers: dict[str, tuple[nn.Module, Callable[..., Tensor]]] = {
        "Linear": (filled(Linear(128, 32, precision)), lambda layer, x: layer(x).sum()),
        "rms_norm": (filled(RMSNorm(128, 1e-6)), lambda layer, x: layer(x).sum()),
        "Head.cross_entropy": (filled(Head(128, 16, precision)), loss),
    }
    for name, (layer, call) in layers.items():
        wanted = torch.autograd.grad(call(layer, x), (x, layer.weight))
        got = torch.autograd.grad(call(layer, x), (x, layer.weight), create_graph=True)
        for a, b in zip(got, wanted, strict=True):
            assert torch.equal(a, b)
            with pytest.raises(NotImplementedError, match=f"^{name}: second derivatives"):
                a.norm().backward(retain_graph=True)


@pytest.mark.parametrize("accumulate", [False, True])
def test_a_weight_behind_its_copy_can_be_differentiated_twice(accumulate: bool) -> None:
    """The head of a bf16 model multiplies by a copy; the product itself is torch's."""
    head, x = filled(Head(128, 16, "bf16")), torch.randn(3, 128, requires_grad=True)

    def curvature(call: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        loss = call(x).float().square().sum()
        first = torch.autograd.grad(loss, (x, head.weight), create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in first), (x, head.weight))

    with accumulate_weight_gradients() if accumulate else nullcontext():
        got = curvature(head)
    wanted = curvature(lambda x: F.linear(x.bfloat16(), head.weight.bfloat16()))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
