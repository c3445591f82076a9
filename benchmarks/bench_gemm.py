"""The gemm family against torch's matmuls, operands ready in the rival's dtype: dense, grouped, whole Linear.

Shapes are (M, N, K). On tier avx512_bf16 the rival that a user would pick is torch's bf16 matmul, on the
lower tiers its fp32 matmul, on a GPU (--device cuda) its bf16 matmul.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek_ext import _native, ops

DECODE = [(1, 2048, 2048), (8, 2048, 2048)]
TRAINING = [(64, 2048, 2048), (256, 1024, 512), (512, 2048, 2048), (2048, 256, 256), (4096, 1024, 512)]
TIERS = ["generic", "avx2", "avx512", "avx512_bf16"]

# 32 experts, top-4 of 1024 tokens, loads as uneven as an untrained router makes them.
EXPERTS, TOKENS, TOP_K = 32, 1024, 4
EXPERT_SHAPES = [(512, 256), (256, 512), (384, 128)]  # N, K


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest, device: str) -> Any:
    if device == "cuda":
        yield "cuda"
        return
    try:
        _native.check_capability(request.param)
    except ValueError:
        pytest.skip(f"this CPU has {_native.host_capability()}, not {request.param}")
    with ops.using_cpu_capability(request.param):
        yield request.param


def dtypes_of(tier: str) -> list[torch.dtype]:
    return {"avx512_bf16": [torch.bfloat16, torch.float32], "cuda": [torch.bfloat16]}.get(
        tier, [torch.float32]
    )


def name_of(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "torch bf16", torch.float32: "torch fp32"}[dtype]


def rivals(tier: str, call: Callable[..., Any], *operands: Any) -> dict[str, Callable[[], Any]]:
    """The same call in each of torch's dtypes that compete on this tier."""

    def bound(dtype: torch.dtype) -> Callable[[], Any]:
        ready = [[x.to(dtype) for x in o] if isinstance(o, list) else o.to(dtype) for o in operands]
        return lambda: call(*ready)

    return {name_of(dtype): bound(dtype) for dtype in dtypes_of(tier)}


@pytest.mark.parametrize("shape", DECODE + TRAINING, ids=lambda s: "x".join(map(str, s)))
def test_gemm(tier: str, threads: int, shape: tuple[int, int, int], versus: Callable[..., Any]) -> None:
    m, n, k = shape
    x, w = torch.randn(m, k), torch.randn(n, k)
    operands = (*ops.quantize_tiles(x), *ops.quantize_blocks(w))
    versus(
        lambda: ops.gemm(*operands),
        rivals(tier, lambda a, b: a @ b.t(), x, w),
        flops=2 * m * n * k,
        rounds=5 if tier == "generic" else 9,
    )


@pytest.mark.parametrize("shape", [(512, 2048, 2048), (4096, 512, 1024)], ids=lambda s: "x".join(map(str, s)))
def test_gemm_dgrad(tier: str, threads: int, shape: tuple[int, int, int], versus: Callable[..., Any]) -> None:
    """With the transposed view of a weight."""
    m, n, k = shape
    x, w = torch.randn(m, k), torch.randn(k, n)
    codes, scales = ops.quantize_blocks(w)
    operands = (*ops.quantize_tiles(x), codes.t(), scales.t())
    versus(
        lambda: ops.gemm(*operands),
        rivals(tier, lambda a, b: a @ b, x, w),
        flops=2 * m * n * k,
        rounds=5 if tier == "generic" else 9,
    )


def test_gemm_accumulate(tier: str, threads: int, versus: Callable[..., Any]) -> None:
    """A weight gradient added to an FP32 gradient that exists, as micro-batches after the first do."""
    m, n, k = 2048, 1024, 512
    grad, x = torch.randn(m, n), torch.randn(m, k)
    operands = (*ops.quantize_tiles_transposed(grad), *ops.quantize_tiles_transposed(x))
    out, total = torch.zeros(n, k), torch.zeros(n, k)
    versus(
        lambda: ops.gemm_accumulate_(out, *operands),
        rivals(tier, lambda grad, x: total.add_(grad.t() @ x), grad, x),
        flops=2 * m * n * k,
        rounds=5 if tier == "generic" else 9,
    )


def expert_loads() -> list[int]:
    generator = torch.Generator().manual_seed(0)
    share = torch.softmax(torch.randn(EXPERTS, generator=generator, device="cpu"), 0)
    chosen = torch.multinomial(share.expand(TOKENS, EXPERTS), TOP_K, generator=generator)
    return torch.bincount(chosen.flatten(), minlength=EXPERTS).tolist()


@pytest.mark.parametrize("shape", EXPERT_SHAPES, ids=str)
def test_grouped_gemm(tier: str, threads: int, shape: tuple[int, int], versus: Callable[..., Any]) -> None:
    n, k = shape
    loads = expert_loads()
    offs = torch.tensor(loads).cumsum(0).to(torch.int32)
    x, w = torch.randn(sum(loads), k), torch.randn(EXPERTS, n, k)
    operands = (*ops.quantize_tiles(x), *ops.quantize_blocks(w), offs)

    def loop(x: Tensor, w: Tensor) -> Tensor:
        return torch.cat([rows @ weight.t() for rows, weight in zip(x.split(loads), w, strict=True)])

    versus(
        lambda: ops.grouped_gemm(*operands),
        rivals(tier, loop, x, w),
        flops=2 * sum(loads) * n * k,
        largest_load=max(loads),
        smallest_load=min(loads),
    )


def wgrad_inputs(n: int, k: int) -> tuple[list[int], Tensor, Tensor, tuple[Tensor, ...]]:
    """Loads, the output's gradient and the input of every row, and both as grouped_gemm_wgrad takes them."""
    loads = expert_loads()
    offs = torch.tensor(loads).cumsum(0).to(torch.int32)
    grad, x = torch.randn(sum(loads), n), torch.randn(sum(loads), k)
    operands = (*ops.quantize_tiles_transposed(grad, offs), *ops.quantize_tiles_transposed(x, offs), offs)
    return loads, grad, x, operands


@pytest.mark.parametrize("shape", EXPERT_SHAPES, ids=str)
def test_grouped_gemm_wgrad(
    tier: str, threads: int, shape: tuple[int, int], versus: Callable[..., Any]
) -> None:
    n, k = shape
    loads, grad, x, operands = wgrad_inputs(n, k)

    def loop(grad: Tensor, x: Tensor) -> Tensor:
        pairs = zip(grad.split(loads), x.split(loads), strict=True)
        return torch.stack([g.t() @ rows for g, rows in pairs])

    versus(
        lambda: ops.grouped_gemm_wgrad(*operands),
        rivals(tier, loop, grad, x),
        flops=2 * sum(loads) * n * k,
        largest_load=max(loads),
        smallest_load=min(loads),
    )


@pytest.mark.parametrize("shape", EXPERT_SHAPES, ids=str)
def test_grouped_gemm_wgrad_accumulate(
    tier: str, threads: int, shape: tuple[int, int], versus: Callable[..., Any]
) -> None:
    """Into an FP32 gradient that exists, as micro-batches after the first do."""
    n, k = shape
    loads, grad, x, operands = wgrad_inputs(n, k)
    out = torch.zeros(EXPERTS, n, k)

    def loop(grad: Tensor, x: Tensor) -> None:
        for total, g, rows in zip(out, grad.split(loads), x.split(loads), strict=True):
            total += g.t() @ rows

    versus(
        lambda: ops.grouped_gemm_wgrad_accumulate_(out, *operands),
        rivals(tier, loop, grad, x),
        flops=2 * sum(loads) * n * k,
    )


@pytest.mark.parametrize("shape", [(2048, 256, 256), (2048, 1024, 512)], ids=lambda s: "x".join(map(str, s)))
def test_linear_forward_and_backward(
    tier: str, threads: int, shape: tuple[int, int, int], versus: Callable[..., Any]
) -> None:
    """fp8_linear, quantisation included, weight codes made once; the rivals are torch's linear."""
    m, n, k = shape
    x, w, grad = torch.randn(m, k), torch.randn(n, k), torch.randn(m, n)

    def step(call: Callable[[Tensor, Tensor], Tensor], x: Tensor, w: Tensor, grad: Tensor) -> Any:
        return torch.autograd.grad(call(x, w), (x, w), grad)

    codes = ops.quantize_blocks(w)
    dtype = dtypes_of(tier)[0]
    ours = (x.to(dtype).requires_grad_(), w.clone().requires_grad_(), grad.to(dtype))

    def bound(dtype: torch.dtype) -> Callable[[], Any]:
        ready = (x.to(dtype).requires_grad_(), w.to(dtype).requires_grad_(), grad.to(dtype))
        return lambda: step(torch.nn.functional.linear, *ready)

    versus(
        lambda: step(lambda x, w: ops.fp8_linear(x, w, codes=codes), *ours),
        {name_of(dtype): bound(dtype) for dtype in dtypes_of(tier)},
        flops=6 * m * n * k,
        rounds=5 if tier == "generic" else 9,
    )


@pytest.mark.parametrize("shape", [(1, 64, 128), (16, 128, 128)], ids=str)
def test_overhead_of_a_small_call(
    shape: tuple[int, int, int], threads: int, versus: Callable[..., Any]
) -> None:
    m, n, k = shape
    x, w = torch.randn(m, k), torch.randn(n, k)
    operands = (*ops.quantize_tiles(x), *ops.quantize_blocks(w))
    theirs = rivals("avx512_bf16", lambda a, b: a @ b.t(), x, w)
    versus(lambda: ops.gemm(*operands), theirs, from_host=True)
