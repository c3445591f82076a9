"""Which kernel serves the products of a training step on Hopper: its own, dgrad's included."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import backends
import pytest
import torch
from torch import Tensor

from deepseek_ext import ops
from deepseek_ext.nn.product import Fp8Product
from deepseek_ext.ops import _transposed

pytestmark = pytest.mark.gpu_backends


@pytest.fixture(autouse=True)
def _hopper(request: pytest.FixtureRequest, backend: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if backend != "simulator" or not backends.has_hopper(request.config):
        pytest.skip("needs the simulator with --simulator-capability 90")
    monkeypatch.setattr(_transposed, "read_along_k_alone", lambda codes: True)  # tensors are the CPU's here
    monkeypatch.setenv("DSE_PRINT_TILES", "1")
    backends.simulator_option("multiprocessors", 4)
    yield
    backends.simulator_option("multiprocessors", 132)


def served(run: Callable[[], None], capfd: pytest.CaptureFixture[str]) -> list[tuple[str, str]]:
    """Operator and kernel of each product."""
    capfd.readouterr()
    run()
    lines = capfd.readouterr().err.splitlines()
    return [(line.split()[0], "hopper" if ", hopper: tile" in line else "portable") for line in lines]


def test_linear(capfd: pytest.CaptureFixture[str], rng: torch.Generator) -> None:
    x = torch.randn(70, 256, generator=rng).bfloat16().requires_grad_()
    weight = torch.randn(144, 256, generator=rng, requires_grad=True)
    kernels = served(lambda: ops.fp8_linear(x, weight).float().square().sum().backward(), capfd)
    assert kernels == [("gemm", "hopper")] * 3


def test_a_layer_of_the_model(capfd: pytest.CaptureFixture[str], rng: torch.Generator) -> None:
    weight, grad = torch.randn(144, 256, generator=rng), torch.randn(70, 144, generator=rng)
    product = Fp8Product(*ops.quantize_blocks(weight))
    by_rows, _ = product.grad_operands(grad)
    results: list[Tensor] = []
    kernels = served(lambda: results.append(product.dgrad(by_rows, torch.float32)), capfd)
    assert kernels == [("gemm", "hopper")]
    transposed = product.codes.t().contiguous(), product.scales.t()
    assert torch.equal(results[0], ops.gemm(*by_rows, *transposed, out_dtype=torch.float32))


def test_experts(capfd: pytest.CaptureFixture[str], rng: torch.Generator) -> None:
    tokens, width, hidden, experts = 40, 128, 64, 3
    x = torch.randn(tokens, width, generator=rng).bfloat16().requires_grad_()
    gate_up = torch.randn(experts, 2 * hidden, width, generator=rng, requires_grad=True)
    down = torch.randn(experts, width, hidden, generator=rng, requires_grad=True)
    weights = torch.rand(tokens, 2, generator=rng)
    indices = torch.rand(tokens, experts, generator=rng).argsort(1)[:, :2].int()

    def run() -> None:
        ops.moe_ffn(x, weights, indices, gate_up, down).float().square().sum().backward()

    kernels = served(run, capfd)
    assert kernels.count(("grouped_gemm", "hopper")) == 4
    assert kernels.count(("grouped_gemm_wgrad", "hopper")) == 2
    assert len(kernels) == 6


def test_depths_that_no_copy_helps(capfd: pytest.CaptureFixture[str], rng: torch.Generator) -> None:
    """Rows of W^T would not begin at multiples of 16 bytes: its view goes to the other kernel."""
    product = Fp8Product(*ops.quantize_blocks(torch.randn(130, 256, generator=rng)))
    by_rows, _ = product.grad_operands(torch.randn(70, 130, generator=rng))
    assert served(lambda: product.dgrad(by_rows, torch.float32), capfd) == [("gemm", "portable")]
