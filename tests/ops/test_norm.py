"""rms_norm: the same bits on every tier, within derived bounds of FP64, and a gradient that is autograd's."""

from __future__ import annotations

from typing import Any

import backends
import numpy as np
import numpy.typing as npt
import pytest
import torch
from cpu_tiers import CPU_TIERS, host_has
from torch import Tensor

from deepseek_ext import ops
from deepseek_ext.reference import norm as reference

U = 2.0**-24
STORED = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SHAPES = [(1, 1), (3, 5), (2, 7, 64), (70, 100), (130, 448), (5, 1000)]
LONG_ROWS = [(5, 8200), (2, 8207)]  # longer than what a block of CUDA threads keeps in registers
each_dtype = pytest.mark.parametrize("dtype", STORED, ids=lambda d: str(d).removeprefix("torch."))
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def inputs(shape: tuple[int, ...], dtype: torch.dtype, rng: torch.Generator) -> tuple[Tensor, ...]:
    x, grad = (torch.randn(shape, generator=rng).to(dtype) for _ in range(2))
    return x, torch.randn(shape[-1], generator=rng), grad


def everything(x: Tensor, weight: Tensor, grad: Tensor, eps: float = 1e-6) -> list[Tensor]:
    out, rstd = ops.rms_norm(x, weight, eps)
    return [out, rstd, ops.rms_norm_again(x, weight, rstd), *ops.rms_norm_backward(grad, x, weight, rstd)]


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@each_dtype
@pytest.mark.parametrize("shape", [*SHAPES, *LONG_ROWS], ids=str)
def test_within_bounds(
    shape: tuple[int, ...], dtype: torch.dtype, backend: str, rng: torch.Generator
) -> None:
    """A row's sum of n terms is off by n/16 + 4 roundings: sixteen sums side by side, then four additions."""
    x, weight, grad = inputs(shape, dtype, rng)
    out, rstd, again, grad_x, grad_weight = everything(x, weight, grad)
    assert same_bits(out, again)
    wide = [t.double() for t in (x, weight, grad)]
    columns, rows = shape[-1], x[..., 0].numel()
    sums = (columns / 16 + 6) * U

    exact_out, exact_rstd = reference.rms_norm(wide[0], wide[1], 1e-6)
    assert ((rstd - exact_rstd).abs() <= (sums + 4 * U) * exact_rstd).all()
    assert ((out - exact_out).abs() <= (sums + 8 * U + STORED[dtype]) * exact_out.abs() + 1e-7).all()

    normed = wide[0] * rstd.double()[..., None]
    exact_x, exact_weight = reference.rms_norm_backward(wide[2], wide[0], wide[1], rstd.double())
    terms = (wide[2] * normed * wide[1]).abs().mean(-1, keepdim=True)
    size = ((wide[2] * wide[1]).abs() + (normed * terms).abs() * (sums / U + 8)) * rstd[..., None]
    bound = 8 * U * size + STORED[dtype] * exact_x.abs() + 1e-7
    assert ((grad_x - exact_x).abs() <= bound).all()
    size = (wide[2] * normed).abs().reshape(-1, columns).sum(0)
    assert ((grad_weight - exact_weight).abs() <= (rows + 4) * U * size).all()


@each_dtype
@each_shape
def test_same_bits_on_every_tier_and_number_of_threads(
    shape: tuple[int, ...], dtype: torch.dtype, threads: int, rng: torch.Generator
) -> None:
    x, weight, grad = inputs(shape, dtype, rng)
    with ops.using_cpu_capability("generic"):
        wanted = everything(x, weight, grad)
    for tier in filter(host_has, CPU_TIERS):
        with ops.using_cpu_capability(tier):
            assert all(map(same_bits, everything(x, weight, grad), wanted)), tier


def test_sum_of_a_row_has_the_order_that_is_stated(backend: str, rng: torch.Generator) -> None:
    """By fused multiply-adds into several sums, of which halves are then added to halves."""
    for columns in (5, 77, 3001):
        x = torch.randn(3, columns, generator=rng)
        _, rstd = ops.rms_norm(x, torch.ones(columns), 1e-5)
        for row, got in zip(x.numpy(), rstd.numpy(), strict=True):
            total = sum_of_squares(row) if backend in CPU_TIERS else sum_of_squares_on_cuda(row)
            mean = total / np.float32(columns) + np.float32(1e-5)
            assert got == np.float32(1) / np.sqrt(mean, dtype=np.float32)


Floats = npt.NDArray[np.float32]


def fused_squares(row: Floats, sums: int) -> Floats:
    """[sums], the first over elements 0, sums, 2 sums, ..., and so on."""
    lanes = np.zeros(sums, dtype=np.float32)
    for i, value in enumerate(row):  # FP64 holds the product exactly, and rounds the sum far below FP32
        lanes[i % sums] = np.float32(np.float64(value) * np.float64(value) + np.float64(lanes[i % sums]))
    return lanes


def by_halves(sums: Floats) -> Floats:
    """The sum over the last dimension, whose size is a power of two."""
    while sums.shape[-1] > 1:
        half = sums.shape[-1] // 2
        sums = sums[..., :half] + sums[..., half:]
    return sums[..., 0]


def sum_of_squares(row: Floats) -> np.float32:
    return np.float32(by_halves(fused_squares(row, 16)))


def sum_of_squares_on_cuda(row: Floats) -> np.float32:
    """Eight sums a thread; then places, the threads of a warp and the warps of a row."""
    threads = 1
    while threads < 256 and 8 * threads < len(row):
        threads *= 2
    places = fused_squares(row, 8 * threads).reshape(-1, min(threads, 32), 8)
    return np.float32(by_halves(by_halves(by_halves(places))))


@each_dtype
def test_with_given_sums_every_device_has_the_same_bits(
    dtype: torch.dtype, backend: str, rng: torch.Generator
) -> None:
    for shape in SHAPES:
        x, weight, _ = inputs(shape, dtype, rng)
        rstd = torch.rand(shape[:-1], generator=rng)
        with backends.on_cpu(), ops.using_cpu_capability("generic"):
            wanted = ops.rms_norm_again(x, weight, rstd)
        assert same_bits(ops.rms_norm_again(x, weight, rstd), wanted)


def test_rows_that_lie_apart(backend: str, rng: torch.Generator) -> None:
    x, weight, grad = inputs((4, 6, 72), torch.bfloat16, rng)
    wide = torch.zeros(4, 6, 200, dtype=torch.bfloat16)
    wide[..., 10:82] = x
    wanted = everything(x, weight, grad)
    turned = x.transpose(0, 2).contiguous().transpose(0, 2)
    for other in (wide[..., 10:82], turned):
        assert all(map(same_bits, everything(other, weight, grad), wanted))
    assert all(map(same_bits, everything(x, weight.repeat(2, 1).t()[:, 0], grad), wanted))


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8)], ids=str)
def test_no_rows(shape: tuple[int, ...], backend: str) -> None:
    x, weight = torch.zeros(shape), torch.ones(8)
    out, rstd, _, grad_x, grad_weight = everything(x, weight, x)
    assert (out.shape, rstd.shape, grad_x.shape) == (shape, shape[:-1], shape)
    assert torch.equal(grad_weight, torch.zeros(8))


def test_huge_tiny_and_not_finite(backend: str) -> None:
    """Zeros stay zeros; a row with NaN is NaN and no other; where squares overflow, rstd is 1 / inf."""
    x = torch.zeros(4, 70)
    x[1], x[2, 3], x[3] = 1e-30, float("nan"), 1e25
    out, rstd = ops.rms_norm(x, torch.ones(70), 1e-6)
    assert torch.equal(out[0], torch.zeros(70))
    torch.testing.assert_close(out[1], torch.full((70,), 1e-27))
    assert rstd[2].isnan()
    assert out[2].isnan().all()
    assert torch.equal(out[3], torch.zeros(70))
    none, _ = ops.rms_norm(x, torch.ones(70), 0.0)
    assert none[0].isnan().all()  # 0 / 0
    wanted = ops.rms_norm(x[1:2], torch.ones(70), 0.0)[0][0]
    assert same_bits(none[1], wanted)  # and nothing of it reaches the next row


@each_dtype
def test_gradient_through_autograd(dtype: torch.dtype, rng: torch.Generator) -> None:
    x, weight, grad = inputs((3, 9, 40), dtype, rng)
    out, rstd = ops.rms_norm(x.requires_grad_(), weight.requires_grad_(), 1e-6)
    assert not rstd.requires_grad
    got = torch.autograd.grad(out, (x, weight), grad)
    with torch.no_grad():
        wanted = ops.rms_norm_backward(grad, x, weight, rstd)
    assert all(map(same_bits, got, wanted))


def test_reference_is_autograds(rng: torch.Generator) -> None:
    x, weight, grad = (t.double() for t in inputs((5, 12), torch.float32, rng))
    out = torch.nn.functional.rms_norm(x.requires_grad_(), (12,), weight.requires_grad_(), 1e-6)
    wanted = torch.autograd.grad(out, (x, weight), grad)
    x, weight = x.detach(), weight.detach()
    ours, rstd = reference.rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(ours, out)
    for a, b in zip(reference.rms_norm_backward(grad, x, weight, rstd), wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_opcheck(rng: torch.Generator) -> None:
    x, weight, grad = inputs((3, 5, 40), torch.float32, rng)
    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
    torch.library.opcheck(torch.ops.deepseek_ext.rms_norm, (*leaves, 1e-6))
    _, rstd = ops.rms_norm(x, weight, 1e-6)
    torch.library.opcheck(torch.ops.deepseek_ext.rms_norm_again, (x, weight, rstd))
    torch.library.opcheck(torch.ops.deepseek_ext.rms_norm_backward, (grad, x, weight, rstd))


def wrong_arguments() -> list[Any]:
    x, weight, rstd = torch.zeros(4, 8), torch.zeros(8), torch.zeros(4)
    return [
        ("rms_norm", (x.double(), weight, 1e-6), "x must be bfloat16, float16 or float32, got float64"),
        ("rms_norm", (x[:, :0], weight, 1e-6), r"x must be \[..., K\] with K > 0, got \[4, 0\]"),
        ("rms_norm", (x, weight.half(), 1e-6), "weight must be float32, got float16"),
        ("rms_norm", (x, weight[:7], 1e-6), r"weight must be \[K\] = \[8\], got \[7\]"),
        ("rms_norm", (x, weight, -1.0), "eps must be finite and not negative, got -1"),
        ("rms_norm_again", (x, weight, rstd[:3]), r"rstd must be \[...\] = \[4\], got \[3\]"),
        ("rms_norm_backward", (x.half(), x, weight, rstd), "grad must have x's dtype float32, got float16"),
        ("rms_norm_backward", (x[:2], x, weight, rstd), r"grad must have x's shape \[4, 8\], got \[2, 8\]"),
    ]


@pytest.mark.parametrize(("op", "args", "message"), wrong_arguments(), ids=lambda x: str(x)[:30])
def test_wrong_arguments(op: str, args: tuple[Any, ...], message: str, backend: str) -> None:
    for device in ("cpu", "meta"):
        moved = [t.to(device) if isinstance(t, Tensor) else t for t in args]
        with pytest.raises(ValueError, match=f"^{op}: {message}; "):
            getattr(ops, op)(*moved)
