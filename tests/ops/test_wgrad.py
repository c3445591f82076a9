"""Weight gradients added straight to `.grad`, or queued: the bits that autograd would have accumulated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from deepseek_ext import ops

T, H, I, E, K = 70, 200, 136, 4, 2


class Layers(nn.Module):
    """A linear layer and routed experts behind it."""

    def __init__(self, rng: torch.Generator) -> None:
        super().__init__()
        self.linear = nn.Parameter(torch.randn(H, H, generator=rng) * H**-0.5)
        self.gate_up = nn.Parameter(torch.randn(E, 2 * I, H, generator=rng) * H**-0.5)
        self.down = nn.Parameter(torch.randn(E, H, I, generator=rng) * I**-0.5)

    def forward(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        return ops.moe_ffn(ops.fp8_linear(x, self.linear), weights, indices, self.gate_up, self.down)


@pytest.fixture
def layers(rng: torch.Generator) -> Layers:
    return Layers(rng)


@pytest.fixture
def batches(rng: torch.Generator) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Three micro-batches; expert 3 gets no token in the second."""
    return [
        (
            torch.randn(T, H, generator=rng).bfloat16().requires_grad_(),
            torch.rand(T, K, generator=rng),
            torch.rand(T, E - (part == 1), generator=rng).argsort(1)[:, :K].int(),
        )
        for part in range(3)
    ]


class Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def take_gradients(layers: Layers) -> dict[str, Tensor | None]:
    taken = {name: p.grad for name, p in layers.named_parameters()}
    layers.zero_grad()
    return taken


def backward(layers: Layers, batches: list[Any], between: Callable[[], None] = lambda: None) -> list[Tensor]:
    inputs = []
    for batch in batches:
        layers(*batch).float().square().mean().backward()
        inputs.append(batch[0].grad)
        batch[0].grad = None
        between()
    return inputs


def test_the_bits_of_autograd_over_micro_batches(backend: str, layers: Layers, batches: list[Any]) -> None:
    wanted_x = backward(layers, batches)
    wanted = take_gradients(layers)
    with ops.accumulate_weight_gradients(), Calls() as calls:
        got_x = backward(layers, batches)
    for name, grad in take_gradients(layers).items():
        assert torch.equal(grad, wanted[name]), name
    assert all(torch.equal(a, b) for a, b in zip(got_x, wanted_x, strict=True))
    # The first product of each parameter becomes its gradient; those after it are added by the GEMM itself.
    assert calls.names.count("gemm_accumulate_") == 2
    assert calls.names.count("grouped_gemm_wgrad_accumulate_") == 2 * 2
    assert calls.names.count("grouped_gemm_wgrad") == 2
    assert not {"zeros_like", "zero_", "add_"} & set(calls.names)


def test_the_product_is_added_once_to_what_is_there(backend: str, layers: Layers, batches: list[Any]) -> None:
    """`.grad` is written in place: it may be a view of a larger buffer."""
    backward(layers, batches[:1])
    product = take_gradients(layers)["linear"]
    buffer = torch.randn(2, H, H)
    before = buffer[1].clone()
    layers.linear.grad = buffer[1]
    with ops.accumulate_weight_gradients():
        backward(layers, batches[:1])
    assert torch.equal(buffer[1], before + product)


def test_the_forward_decides(layers: Layers, batches: list[Any]) -> None:
    """Backward may run outside the block, or in another thread, as it does for CUDA."""
    with ops.accumulate_weight_gradients():
        out = layers(*batches[0])
    plain = layers(*batches[1])
    with Calls() as calls:
        out.sum().backward()
        out_calls = calls.names.count("grouped_gemm_wgrad")
        with ops.accumulate_weight_gradients():
            plain.sum().backward()
    assert out_calls == 2
    assert calls.names.count("grouped_gemm_wgrad_accumulate_") == 0
    assert calls.names.count("grouped_gemm_wgrad") == 4


def test_a_queue_holds_the_products_back(layers: Layers, batches: list[Any]) -> None:
    wanted_x = backward(layers, batches)
    wanted = take_gradients(layers)
    queue: list[Callable[[], None]] = []
    with ops.accumulate_weight_gradients(queue), Calls() as calls:
        got_x = backward(layers, batches)
    assert not {"retile", "gemm_accumulate_", "grouped_gemm_wgrad"} & set(calls.names)
    assert all(torch.equal(a, b) for a, b in zip(got_x, wanted_x, strict=True))
    assert len(queue) == 3 * 3
    assert set(take_gradients(layers).values()) == {None}
    for product in queue:
        product()
    for name, grad in take_gradients(layers).items():
        assert torch.equal(grad, wanted[name]), name
        assert not grad.requires_grad


def test_frozen_parameters_get_nothing(layers: Layers, batches: list[Any]) -> None:
    backward(layers, batches[:1])
    wanted = take_gradients(layers)
    layers.linear.requires_grad_(False)
    layers.down.requires_grad_(False)
    with ops.accumulate_weight_gradients(), Calls() as calls:
        backward(layers, batches[:1])
    assert torch.equal(layers.gate_up.grad, wanted["gate_up"])
    assert layers.linear.grad is None
    assert layers.down.grad is None
    assert calls.names.count("grouped_gemm_wgrad") == 1
    assert calls.names.count("gemm") == 1  # dgrad of the linear layer


@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_still_see_the_gradient(kind: str, layers: Layers, batches: list[Any]) -> None:
    backward(layers, batches[:1])
    wanted = take_gradients(layers)
    seen: list[Tensor] = []

    def hook(value: Tensor) -> None:
        seen.append(value if kind == "register_hook" else value.grad)

    getattr(layers.down, kind)(hook)
    with ops.accumulate_weight_gradients():
        backward(layers, batches[:1])
    assert len(seen) == 1
    assert torch.equal(seen[0], wanted["down"])
    assert torch.equal(layers.down.grad, wanted["down"])


def test_torch_autograd_grad_gets_what_it_asks_for(layers: Layers, batches: list[Any]) -> None:
    backward(layers, batches[:1])
    wanted = take_gradients(layers)
    with ops.accumulate_weight_gradients():
        out = layers(*batches[0]).float().square().mean()
        (x_grad,) = torch.autograd.grad(out, batches[0][0], retain_graph=True)
        grads = torch.autograd.grad(out, list(layers.parameters()))
    assert x_grad.shape == (T, H)
    for (name, parameter), grad in zip(layers.named_parameters(), grads, strict=True):
        assert torch.equal(grad, wanted[name]), name
        assert parameter.grad is None, "nothing is accumulated behind its back"


def test_backward_with_inputs_reaches_only_these(layers: Layers, batches: list[Any]) -> None:
    with ops.accumulate_weight_gradients():
        layers(*batches[0]).sum().backward(inputs=[layers.down])
    assert layers.down.grad is not None
    assert layers.gate_up.grad is None
    assert layers.linear.grad is None


def test_what_is_no_fp32_parameter_goes_through_autograd(rng: torch.Generator) -> None:
    x = torch.randn(T, H, generator=rng)
    for dtype in (torch.float32, torch.bfloat16):
        leaf = torch.randn(H, H, generator=rng).to(dtype).requires_grad_()
        results = []
        for mode in (False, True):
            with ops.accumulate_weight_gradients() if mode else torch.enable_grad():
                weight = leaf * 2 if dtype == torch.float32 else leaf
                ops.fp8_linear(x, weight).square().mean().backward()
            results.append(leaf.grad)
            leaf.grad = None
        assert results[0].dtype == dtype
        assert torch.equal(*results)


def test_a_traced_layer_returns_its_gradients(layers: Layers, batches: list[Any]) -> None:
    wanted = backward(layers, batches[:1])
    grads = take_gradients(layers)
    compiled = torch.compile(layers, backend="aot_eager", fullgraph=True)
    with ops.accumulate_weight_gradients():
        compiled(*batches[0]).float().square().mean().backward()
    assert torch.equal(batches[0][0].grad, wanted[0])
    for name, grad in take_gradients(layers).items():
        assert torch.equal(grad, grads[name]), name


def test_data_parallel_sees_returned_gradients(layers: Layers, batches: list[Any], tmp_path: Any) -> None:
    wanted = backward(layers, batches[:1])
    grads = take_gradients(layers)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(layers)
        parallel(*batches[0]).float().square().mean().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(batches[0][0].grad, wanted[0])
    for name, grad in take_gradients(layers).items():
        assert torch.equal(grad, grads[name]), name
