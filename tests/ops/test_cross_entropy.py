"""cross_entropy_: within bounds of FP64, the same gradient on every tier, choices as argmax has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cpu_tiers import CPU_TIERS, host_has
from torch import Tensor

from deepseek_ext import ops
from deepseek_ext.reference import cross_entropy as reference

U = 2.0**-24
STORED = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
each_dtype = pytest.mark.parametrize("dtype", STORED, ids=lambda d: str(d).removeprefix("torch."))
# The last two are longer than what a block of CUDA threads keeps in registers.
SHAPES = [(1, 1), (3, 5), (9, 64), (40, 130), (70, 1000), (3, 16640), (2, 16391)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def inputs(shape: tuple[int, int], dtype: torch.dtype, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    logits = (3 * torch.randn(shape, generator=rng)).to(dtype)
    targets = torch.randint(shape[1], shape[:1], generator=rng)
    targets[1::4] = -100
    return logits, targets


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@each_dtype
@each_shape
def test_within_bounds(
    shape: tuple[int, int], dtype: torch.dtype, backend: str, rng: torch.Generator
) -> None:
    """An exponential is off by 1.1 ulp and by its argument's rounding, a sum of n by n/16 + 4 roundings."""
    logits, targets = inputs(shape, dtype, rng)
    wide = logits.double()
    grads = logits.clone()
    losses, choices = ops.cross_entropy_(grads, targets)
    assert torch.equal(choices, logits.float().argmax(-1))

    spread = (wide.amax(-1) - wide.amin(-1))[:, None]
    off = (shape[1] / 16 + 8 + 2 * spread) * U
    exact = wide.clone()
    exact_losses, _ = reference.cross_entropy_(exact, targets)
    assert ((losses - exact_losses).abs() <= (off + 4 * U * (1 + spread))[:, 0]).all()
    share = wide.softmax(-1) * (targets != -100)[:, None]
    assert ((grads - exact).abs() <= (2 * off + 4 * U) * share + STORED[dtype] * exact.abs() + 2.0**-24).all()
    assert not losses[targets == -100].any()
    assert not grads[targets == -100].any()


@each_dtype
def test_same_bits_on_every_tier_number_of_threads_and_layout(
    dtype: torch.dtype, threads: int, rng: torch.Generator
) -> None:
    logits, targets = inputs((130, 333), dtype, rng)
    with ops.using_cpu_capability("generic"):
        wanted = logits.clone()
        losses, choices = ops.cross_entropy_(wanted, targets)
    for tier in filter(host_has, CPU_TIERS):
        with ops.using_cpu_capability(tier):
            wide = torch.full((130, 400), 7.0, dtype=dtype)
            rows = wide[:, 20:353].copy_(logits)
            found, chosen = ops.cross_entropy_(rows, targets.repeat(2, 1).t()[:, 0])
            assert same_bits(rows, wanted), tier
            assert same_bits(found, losses), tier
            assert torch.equal(chosen, choices), tier
            assert (wide[:, :20] == 7).all()
            assert (wide[:, 353:] == 7).all()


@each_dtype
@pytest.mark.parametrize("columns", [333, 336])
def test_only_the_logits_are_written(
    columns: int, dtype: torch.dtype, backend: str, rng: torch.Generator
) -> None:
    logits, targets = inputs((13, columns), dtype, rng)
    wide = torch.full((13, 400), 7.0, dtype=dtype)
    rows = wide[:, 16 : 16 + columns].copy_(logits)
    found, chosen = ops.cross_entropy_(rows, targets.repeat(2, 1).t()[:, 0])
    losses, choices = ops.cross_entropy_(logits, targets)
    assert same_bits(rows, logits)
    assert same_bits(found, losses)
    assert torch.equal(chosen, choices)
    assert (wide[:, :16] == 7).all()
    assert (wide[:, 16 + columns :] == 7).all()


def test_wrong_targets(backend: str, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator) -> None:
    """A kernel that is not checked takes the nearest class for them, and reads and writes nothing else."""
    logits, targets = inputs((4, 24), torch.float32, rng)
    with pytest.raises(ValueError, match=r"targets\[0\] must be between 0 and V - 1 = 23, or -100, got 24"):
        ops.cross_entropy_(logits.clone(), targets + 24 - targets[0])
    if backend == "simulator":
        monkeypatch.setenv("DSE_CHECK", "0")
        grads = logits.clone()
        losses, _ = ops.cross_entropy_(grads, torch.tensor([24, -1, 2**62, -(2**63)]))
        wanted, _ = ops.cross_entropy_(logits, torch.tensor([23, 0, 23, 0]))
        assert same_bits(losses, wanted)
        assert same_bits(grads, logits)


def test_reference_is_autograds(rng: torch.Generator) -> None:
    logits, targets = inputs((12, 30), torch.float32, rng)
    leaf = logits.double().requires_grad_()
    wanted = torch.nn.functional.cross_entropy(leaf, targets, reduction="none")
    wanted.sum().backward()
    grads = logits.double()
    losses, choices = reference.cross_entropy_(grads, targets)
    torch.testing.assert_close(losses, wanted.detach())
    torch.testing.assert_close(grads, leaf.grad)
    assert torch.equal(choices, logits.argmax(-1))


def test_ties_huge_and_not_finite(backend: str) -> None:
    logits = torch.zeros(5, 100)
    logits[0, [70, 20]] = 4.0  # a tie goes to the first
    logits[1, 3] = 3e38
    logits[2, 5] = float("nan")
    logits[3] = float("-inf")
    logits[3, 9] = 0.0
    logits[4] = -3e38
    targets = torch.tensor([20, 3, 0, 9, 99])
    losses, choices = ops.cross_entropy_(logits, targets)
    assert choices.tolist()[:2] == [20, 3]
    assert choices[3] == 9
    assert losses[1] == 0
    assert losses[3] == 0
    assert losses[2].isnan()
    assert logits[2].isnan().any()
    torch.testing.assert_close(losses[4], torch.tensor(100.0).log())
    assert torch.isfinite(logits[[0, 1, 3, 4]]).all()


def test_no_rows(backend: str) -> None:
    losses, choices = ops.cross_entropy_(torch.zeros(0, 7), torch.zeros(0, dtype=torch.int64))
    assert (losses.shape, choices.shape) == ((0,), (0,))


def test_opcheck(rng: torch.Generator) -> None:
    torch.library.opcheck(torch.ops.deepseek_ext.cross_entropy_, inputs((6, 40), torch.float32, rng))


def wrong_arguments() -> list[Any]:
    logits, targets = torch.zeros(4, 8), torch.zeros(4, dtype=torch.int64)
    return [
        ((logits.double(), targets), "logits must be bfloat16, float16 or float32, got float64"),
        ((logits[0], targets), r"logits must be \[M, V\] with V > 0, got \[8\]"),
        ((logits, targets.int()), "targets must be int64, got int32"),
        ((logits, targets[:3]), r"targets must be \[M\] = \[4\], got \[3\]"),
        ((logits.t().contiguous().t(), targets), "logits must have adjacent columns"),
        ((logits, targets + 8), r"targets\[0\] must be between 0 and V - 1 = 7, or -100, got 8"),
        ((logits, targets - 1), r"targets\[0\] must be between 0 and V - 1 = 7, or -100, got -1"),
    ]


@pytest.mark.parametrize(("args", "message"), wrong_arguments(), ids=lambda x: str(x)[:30])
def test_wrong_arguments(args: tuple[Tensor, Tensor], message: str, backend: str) -> None:
    with pytest.raises(ValueError, match=f"^cross_entropy_: {message}"):
        ops.cross_entropy_(*args)
    if "adjacent" not in message and "between" not in message:  # of strides and values fakes know nothing
        with pytest.raises(ValueError, match=f"^cross_entropy_: {message}; "):
            ops.cross_entropy_(*(x.to("meta") for x in args))


def test_logits_that_require_grad_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^cross_entropy_: logits must not require grad"):
        ops.cross_entropy_(torch.zeros(2, 3, requires_grad=True), torch.zeros(2, dtype=torch.int64))
