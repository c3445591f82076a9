"""What is built of the operators, on a GPU: the model's steps, and the layers that `make gpu-check` times.

The tolerances allow for what may differ between devices: torch's own products, codes of numbers that an
earlier rounding moved across a boundary, tokens that then choose another expert.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from deepseek_ext import ModelConfig, ops
from deepseek_ext.model import DeepseekV3
from deepseek_ext.train import build_optimizer

pytestmark = [
    pytest.mark.gpu_backends,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

# Relative errors of a parameter's gradient: for fp8 and bf16 those that tests/model allows against fp32.
TOLERANCE = {"fp8": 0.35, "bf16": 0.03, "fp32": 0.001}


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Whatever makes the host wait for the GPU is an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def batch(rng: torch.Generator, sequences: int = 2, length: int = 65) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(512, (sequences, length + 1), generator=rng)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def step(model: DeepseekV3, tokens: Tensor, targets: Tensor, starts: Tensor | None) -> dict[str, Tensor]:
    """Gradients of every parameter, and the loss before and after an optimizer step."""
    optimizer = build_optimizer(model, lr=1e-3)
    with ops.accumulate_weight_gradients():
        loss = model.loss(tokens, targets, document_starts=starts)
    loss.total.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    with torch.no_grad():
        after = model.loss(tokens, targets, document_starts=starts).main
    return found | {"loss": loss.main.detach(), "loss after": after}


@pytest.mark.parametrize("documents", [False, True], ids=["one document", "documents"])
@pytest.mark.parametrize("precision", TOLERANCE)
def test_a_training_step_is_the_cpus(precision: str, documents: bool, rng: torch.Generator) -> None:
    tokens, targets = batch(rng)
    starts = None
    if documents:
        starts = torch.where(torch.arange(65) < 30, 0, 30).int().expand(2, -1).contiguous()
    model = DeepseekV3(ModelConfig.preset("tiny"), precision=precision, seed=3)
    on_gpu = copy.deepcopy(model).to("cuda")
    wanted = step(model, tokens, targets, starts)
    found = step(on_gpu, *(x if x is None else x.to("cuda") for x in (tokens, targets, starts)))
    assert found.keys() == wanted.keys()
    off = {name: ((found[name].cpu() - x).norm() / x.norm()).item() for name, x in wanted.items()}
    assert max(off.values()) < TOLERANCE[precision], max(off, key=off.__getitem__)
    assert max(off["loss"], off["loss after"]) < TOLERANCE[precision] / 10


def test_a_model_made_on_the_gpu_has_the_cpus_weights() -> None:
    config = ModelConfig.preset("tiny")
    here, there = DeepseekV3(config, seed=3), DeepseekV3(config, seed=3, device="cuda")
    for name, value in there.state_dict().items():
        assert value.is_cuda, name
        assert torch.equal(value.cpu(), here.state_dict()[name]), name


def test_a_step_waits_for_nothing(rng: torch.Generator, request: pytest.FixtureRequest) -> None:
    model = DeepseekV3(ModelConfig.preset("tiny"), precision="fp8", seed=3, device="cuda")
    optimizer = build_optimizer(model, lr=1e-3)
    tokens, targets = (x.to("cuda") for x in batch(rng))

    def step() -> None:
        with ops.accumulate_weight_gradients():
            loss = model.loss(tokens, targets)
        loss.total.backward()
        optimizer.step()
        model.update_router_bias(1e-3)
        optimizer.zero_grad()

    step()  # what is made once may wait
    request.getfixturevalue("no_waiting")
    step()


def experts(rng: torch.Generator) -> list[Tensor]:
    """Tokens, weights and experts of each, weights of a routed FFN."""
    count, hidden, width, number = 200, 256, 128, 8
    indices = torch.rand(count, number, generator=rng).argsort(1)[:, :2].int()
    shapes = ((count, hidden), (number, 2 * width, hidden), (number, hidden, width))
    x, gate_up, down = (torch.randn(*s, generator=rng) * s[-1] ** -0.5 for s in shapes)
    return [x.bfloat16(), torch.rand(count, 2, generator=rng), indices, gate_up, down]


def test_a_routed_layer_waits_for_nothing(rng: torch.Generator, request: pytest.FixtureRequest) -> None:
    """And gives what it gives on the CPU, up to a few codes."""
    arguments = experts(rng)
    wanted = ops.moe_ffn(*arguments).float()
    x, *rest = (a.to("cuda") for a in arguments)
    x.requires_grad_()
    torch.autograd.grad(ops.moe_ffn(x, *rest).float().sum(), x)
    request.getfixturevalue("no_waiting")
    out = ops.moe_ffn(x, *rest)
    (grad,) = torch.autograd.grad(out.float().sum(), x)
    torch.cuda.set_sync_debug_mode("default")
    assert (out.float().cpu() - wanted).norm() <= 0.01 * wanted.norm()
    assert grad.isfinite().all()


def test_a_captured_step_gives_the_gradients_of_another_batch(rng: torch.Generator) -> None:
    """Forward and backward of a model in one CUDA graph, tokens written into its inputs afterwards."""
    model = DeepseekV3(ModelConfig.preset("tiny"), precision="fp8", seed=3, device="cuda")
    first, second = ([x.to("cuda") for x in batch(rng)] for _ in range(2))
    tokens, targets = (x.clone() for x in first)

    def gradients() -> list[Tensor]:
        for parameter in model.parameters():
            parameter.grad = None
        loss = model.loss(tokens, targets)
        loss.total.backward()
        return [loss.main.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            gradients()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients()
    tokens.copy_(second[0])
    targets.copy_(second[1])
    graph.replay()
    for replayed, wanted in zip([x.clone() for x in captured], gradients(), strict=True):
        # Attention adds up its gradients in any order, which may change a code.
        assert (replayed - wanted).norm() <= 0.02 * wanted.norm()
