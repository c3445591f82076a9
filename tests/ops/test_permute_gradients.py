"""Gradients of the permute family against those of the FP64 reference, element by element; compilation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from permute_inputs import FLOATS, assert_same_bits, some_indices
from torch import Tensor

from deepseek_ext import ops
from deepseek_ext.reference import permute as reference

OPS = torch.ops.deepseek_ext
TOKENS, TOP_K, WIDTH = 37, 3, 130
# Half the spacing of a dtype's numbers relative to them, and half of its smallest number.
ROUNDING = {
    torch.bfloat16: (2.0**-8, 2.0**-134),
    torch.float16: (2.0**-11, 2.0**-25),
    torch.float32: (0.0, 0.0),  # sums are in FP32 already
}


def order(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    rows, slots, _ = ops.expert_order(some_indices(rng, TOKENS, TOP_K), 9)
    return rows, slots


def leaves(rng: torch.Generator, dtype: torch.dtype, *shapes: tuple[int, int]) -> list[Tensor]:
    return [torch.randn(shape, generator=rng).to(dtype).requires_grad_() for shape in shapes]


def gradients(function: Callable[..., Tensor], tensors: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(function(*tensors), tensors, grad)


def doubled(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().double().requires_grad_() for t in tensors]


def check(got: Tensor, exact: Tensor, magnitudes: Tensor, roundings: int) -> None:
    """The error is at most `roundings` in FP32 of terms that sum to `magnitudes`, and the final rounding."""
    relative, smallest = ROUNDING[got.dtype]
    bound = roundings * 2.0**-24 * magnitudes
    bound = bound + relative * (exact.abs() + bound) + smallest
    excess = ((got.double() - exact).abs() - bound).flatten()
    worst = int(excess.argmax())
    assert excess[worst] <= 0, (
        f"element {worst}: {got.flatten()[worst].item()} is off {exact.flatten()[worst].item()} "
        f"by more than {bound.flatten()[worst].item()}"
    )


def dots_roundings(width: int) -> int:
    """64 partial sums of ceil(H/64) products, added in pairs; one spare for products of small terms."""
    return -(-width // 64) + 8


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_gather_rows(dtype: torch.dtype, weighted: bool, backend: str, rng: torch.Generator) -> None:
    rows, slots = order(rng)
    x = leaves(rng, dtype, (TOKENS, WIDTH))
    weights = leaves(rng, torch.float32, (TOKENS, TOP_K)) if weighted else []
    grad = torch.randn(rows.numel(), WIDTH, generator=rng).to(dtype)
    got = gradients(lambda x, *w: ops.gather_rows(x, rows, TOP_K, *w), x + weights, grad)
    exact = gradients(
        lambda x, *w: reference.gather_rows(x, rows, TOP_K, *w), doubled(x + weights), grad.double()
    )
    factors = weights[0].detach().double().abs() if weighted else None
    magnitudes = reference.combine_rows(grad.double().abs(), slots, factors)
    check(got[0], exact[0], magnitudes, TOP_K - 1 + weighted)
    if weighted:
        magnitudes = reference.row_dots(x[0].detach().double().abs(), grad.double().abs(), slots)
        check(got[1], exact[1], magnitudes, dots_roundings(WIDTH))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("with_residual", [False, True], ids=["alone", "residual"])
def test_combine_rows(
    dtype: torch.dtype, weighted: bool, with_residual: bool, backend: str, rng: torch.Generator
) -> None:
    rows, slots = order(rng)
    rows_out = leaves(rng, dtype, (rows.numel(), WIDTH))
    weights = leaves(rng, torch.float32, (TOKENS, TOP_K)) if weighted else []
    residual = leaves(rng, dtype, (TOKENS, WIDTH)) if with_residual else []
    grad = torch.randn(TOKENS, WIDTH, generator=rng).to(dtype)

    def call(combine: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(rows_out: Tensor, *rest: Tensor) -> Tensor:
            return combine(
                rows_out, slots, rest[0] if weighted else None, rest[-1] if with_residual else None
            )

        return run

    tensors = rows_out + weights + residual
    got = gradients(call(ops.combine_rows), tensors, grad)
    exact = gradients(call(reference.combine_rows), doubled(tensors), grad.double())
    check(got[0], exact[0], exact[0].abs(), int(weighted))
    if weighted:
        magnitudes = reference.row_dots(grad.double().abs(), rows_out[0].detach().double().abs(), slots)
        check(got[1], exact[1], magnitudes, dots_roundings(WIDTH))
    if with_residual:
        assert_same_bits(got[-1], grad)


def test_row_dots(backend: str, rng: torch.Generator) -> None:
    rows, slots = order(rng)
    tensors = leaves(rng, torch.float32, (TOKENS, WIDTH), (rows.numel(), WIDTH))
    grad = torch.randn(TOKENS, TOP_K, generator=rng)
    got = gradients(lambda x, r: OPS.row_dots(x, r, slots), tensors, grad)
    exact = gradients(lambda x, r: reference.row_dots(x, r, slots), doubled(tensors), grad.double())
    magnitudes = reference.combine_rows(tensors[1].detach().double().abs(), slots, grad.double().abs())
    check(got[0], exact[0], magnitudes, TOP_K)
    check(got[1], exact[1], exact[1].abs(), 1)


def test_the_bound_bites(backend: str, rng: torch.Generator) -> None:
    """A gradient that lacks one of a token's rows, or a weight, is out of bounds."""
    rows, slots = order(rng)
    x = leaves(rng, torch.bfloat16, (TOKENS, WIDTH))
    grad = torch.randn(rows.numel(), WIDTH, generator=rng).bfloat16()
    (exact,) = gradients(lambda x: reference.gather_rows(x, rows, TOP_K), doubled(x), grad.double())
    magnitudes = reference.combine_rows(grad.double().abs(), slots)
    for wrong in (slots.masked_fill(slots == 5, -1), slots.roll(1, 1).roll(1, 0)):
        with pytest.raises(AssertionError, match="is off"):
            check(ops.combine_rows(grad, wrong), exact, magnitudes, TOP_K)


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_only_the_gradient_that_is_wanted(needs: tuple[bool, bool], rng: torch.Generator) -> None:
    rows, slots = order(rng)
    rows_out = torch.randn(slots.numel(), 8, generator=rng, requires_grad=needs[0])
    weights = torch.randn(slots.shape, generator=rng, requires_grad=needs[1])
    x = torch.randn(TOKENS, 8, generator=rng, requires_grad=needs[0])
    for result, tensor in (
        (ops.combine_rows(rows_out, slots, weights), rows_out),
        (ops.gather_rows(x, rows, TOP_K, weights), x),
    ):
        weights.grad = None
        result.square().sum().backward()
        assert (tensor.grad is not None, weights.grad is not None) == needs


def test_second_derivatives(rng: torch.Generator) -> None:
    """Backwards are made of the same operators, so they are differentiable again."""
    rows, slots = order(rng)
    x, rows_out = leaves(rng, torch.float32, (TOKENS, 8), (rows.numel(), 8))
    (weights,) = leaves(rng, torch.float32, (TOKENS, TOP_K))

    def curvature(gather: Callable[..., Tensor], combine: Callable[..., Tensor], *t: Tensor) -> list[Tensor]:
        x, rows_out, weights = t
        y = gather(x, rows, TOP_K, weights) * rows_out.square()
        loss = combine(y, slots, weights).square().sum()
        first = torch.autograd.grad(loss, t, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), t))

    tensors = [x, rows_out, weights]
    exact = curvature(reference.gather_rows, reference.combine_rows, *doubled(tensors))
    for got, wanted in zip(curvature(ops.gather_rows, ops.combine_rows, *tensors), exact, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))


def test_a_row_named_twice_has_no_gradient(rng: torch.Generator) -> None:
    x = torch.randn(3, 4, generator=rng, requires_grad=True)
    gathered = ops.gather_rows(x, torch.tensor([1, 5, 1], dtype=torch.int32), 2)
    with pytest.raises(ValueError, match=r"places must not name a place twice, got 1 again at position 2"):
        gathered.sum().backward()
    combined = ops.combine_rows(x, torch.tensor([[0, 2], [2, 1]], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"places must not name a place twice, got 2 again at position 2"):
        combined.sum().backward()


def test_under_compile(rng: torch.Generator) -> None:
    indices = some_indices(rng)

    def layer(x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        rows, slots, _ = ops.expert_order(indices, 9)
        gathered = ops.gather_rows(x, rows, indices.shape[1])
        codes, scales = ops.gather_tiles(*ops.quantize_tiles(x.detach()), rows, indices.shape[1])
        scaled = gathered.square() + ops.dequantize_tiles(codes, scales)
        return ops.combine_rows(scaled, slots, weights, x)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    tensors = [
        torch.randn(37, 130, generator=rng, requires_grad=True),
        torch.randn(37, 3, generator=rng, requires_grad=True),
    ]
    got, wanted = compiled(*tensors, indices), layer(*tensors, indices)
    assert_same_bits(got, wanted)
    for one, other in zip(*(torch.autograd.grad(y.sum(), tensors) for y in (got, wanted)), strict=True):
        torch.testing.assert_close(one, other)


def test_opcheck(rng: torch.Generator) -> None:
    rows, slots = order(rng)
    x = torch.randn(37, 256, generator=rng, requires_grad=True)
    rows_out = torch.randn(slots.numel(), 16, generator=rng, dtype=torch.bfloat16, requires_grad=True)
    weights = torch.rand(slots.shape, generator=rng, requires_grad=True)
    residual = torch.randn(37, 16, generator=rng).bfloat16().requires_grad_()
    torch.library.opcheck(OPS.expert_order.default, (some_indices(rng), 9))
    torch.library.opcheck(OPS.inverse_order.default, (rows, rows.numel()))
    torch.library.opcheck(OPS.gather_rows.default, (x, rows, 3))
    torch.library.opcheck(OPS.gather_rows.default, (x, rows, 3, weights))
    torch.library.opcheck(OPS.combine_rows.default, (rows_out, slots, weights, residual))
    torch.library.opcheck(OPS.combine_rows.default, (rows_out, slots))
    torch.library.opcheck(OPS.row_dots.default, (residual, rows_out, slots))
    codes, scales = ops.quantize_tiles(x.detach())
    # test_schema compares inputs before and after, which torch cannot do for FP8 tensors.
    checks = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(OPS.gather_tiles.default, (codes, scales, rows, 3), test_utils=checks)
