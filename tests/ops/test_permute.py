"""expert_order, gather_tiles, gather_rows, combine_rows against loops over tokens in plain Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode

from deepseek_ext import ops

OPS = torch.ops.deepseek_ext


def order_by_hand(indices: list[list[int]], experts: int) -> tuple[list[int], list[list[int]], list[int]]:
    rows: list[int] = []
    offs = []
    slots = [[-1] * len(token) for token in indices]
    for expert in range(experts):
        for t, token in enumerate(indices):
            for k, chosen in enumerate(token):
                if chosen == expert:
                    slots[t][k] = len(rows)
                    rows.append(t * len(token) + k)
        offs.append(len(rows))
    total = sum(len(token) for token in indices)
    return rows + [-1] * (total - len(rows)), slots, offs


def some_indices(rng: torch.Generator, tokens: int = 37, top_k: int = 3, experts: int = 9) -> Tensor:
    """Without repetition in a token, some of them -1, expert 4 never chosen."""
    choice = torch.rand(tokens, experts, generator=rng)
    choice[:, 4] = -1
    indices = choice.argsort(1, descending=True)[:, :top_k].int()
    return indices.masked_fill(torch.rand(tokens, top_k, generator=rng) < 0.2, -1)


routings = st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(0, 12)).flatmap(
    lambda shape: st.tuples(
        st.just(shape[0]),
        st.lists(
            st.lists(st.integers(-1, shape[0] - 1), min_size=shape[1], max_size=shape[1]),
            min_size=shape[2],
            max_size=shape[2],
        ),
        st.just(shape[1]),
    )
)


@settings(max_examples=150, deadline=None)
@given(routings)
def test_expert_order_is_the_stable_counting_sort(case: tuple[int, list[list[int]], int]) -> None:
    experts, indices, top_k = case
    order = ops.expert_order(torch.tensor(indices, dtype=torch.int32).view(-1, top_k), experts)
    rows, slots, offs = order_by_hand(indices, experts)
    assert order.rows.tolist() == rows
    assert order.slots.tolist() == slots
    assert order.offs.tolist() == offs
    assert {t.dtype for t in order} == {torch.int32}


@settings(max_examples=50, deadline=None)
@given(routings)
def test_rows_and_slots_are_inverse(case: tuple[int, list[list[int]], int]) -> None:
    experts, indices, top_k = case
    rows, slots, offs = ops.expert_order(torch.tensor(indices, dtype=torch.int32).view(-1, top_k), experts)
    used = int(offs[-1])
    assert torch.equal(slots.flatten()[rows[:used].long()], torch.arange(used, dtype=torch.int32))
    assert bool((rows[used:] == -1).all())
    assert int((slots >= 0).sum()) == used == sum(e >= 0 for token in indices for e in token)


@pytest.mark.parametrize("case", ["all to one", "all absent", "last expert only"])
def test_expert_order_extremes(case: str) -> None:
    value = {"all to one": 2, "all absent": -1, "last expert only": 6}[case]
    indices = torch.full((50, 2), value, dtype=torch.int32)
    rows, slots, offs = ops.expert_order(indices, 7)
    expected = order_by_hand(indices.tolist(), 7)
    assert (rows.tolist(), slots.tolist(), offs.tolist()) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_gather_rows(dtype: torch.dtype, rng: torch.Generator) -> None:
    indices = some_indices(rng)
    rows, _, _ = ops.expert_order(indices, 9)
    x = torch.randn(37, 40, generator=rng).to(dtype)
    gathered = ops.gather_rows(x, rows, 3)
    for i, row in enumerate(rows.tolist()):
        expected = torch.zeros(40, dtype=dtype) if row < 0 else x[row // 3]
        assert torch.equal(gathered[i], expected), f"row {i} comes from {row}"
    assert gathered.dtype == dtype


def test_gather_tiles(rng: torch.Generator) -> None:
    rows, _, _ = ops.expert_order(some_indices(rng), 9)
    codes = torch.randint(0, 256, (37, 200), generator=rng, dtype=torch.uint8)  # NaN codes included
    scales = torch.rand(37, 2, generator=rng)
    row_codes, row_scales = ops.gather_tiles(codes.view(torch.float8_e4m3fn), scales, rows, 3)
    assert row_codes.dtype == torch.float8_e4m3fn
    for i, row in enumerate(rows.tolist()):
        expected = torch.zeros(200, dtype=torch.uint8) if row < 0 else codes[row // 3]
        assert torch.equal(row_codes[i].view(torch.uint8), expected)
        assert row_scales[i].tolist() == ([1, 1] if row < 0 else scales[row // 3].tolist())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_combine_rows_bit_for_bit(
    dtype: torch.dtype, weighted: bool, with_residual: bool, rng: torch.Generator
) -> None:
    """The order of the FP32 sum is part of the meaning, so numpy's FP32 in that order gives the same bits."""
    indices = some_indices(rng, top_k=5)
    _, slots, _ = ops.expert_order(indices, 9)
    rows_out = (torch.randn(slots.numel(), 21, generator=rng) * 1e3).to(dtype)
    weights = torch.rand(slots.shape, generator=rng) if weighted else None
    residual = torch.randn(37, 21, generator=rng).to(dtype) if with_residual else None
    combined = ops.combine_rows(rows_out, slots, weights, residual)
    wide = rows_out.float().numpy()
    for t in range(37):
        total = torch.zeros(21).numpy()
        for k, slot in enumerate(slots[t].tolist()):
            if slot >= 0:
                total = total + (wide[slot] if weights is None else wide[slot] * weights[t, k].numpy())
        if residual is not None:
            total = total + residual[t].float().numpy()
        assert torch.equal(combined[t], torch.from_numpy(total).to(dtype)), f"token {t}"


def test_a_missing_slot_adds_nothing_even_beside_nan() -> None:
    rows_out = torch.full((2, 3), float("nan"))
    slots = torch.tensor([[-1, -1]], dtype=torch.int32)
    assert ops.combine_rows(rows_out, slots).tolist() == [[0, 0, 0]]


def test_no_rows_and_no_tokens() -> None:
    nowhere = torch.tensor([[-1, -1], [-1, -1]], dtype=torch.int32)
    assert ops.combine_rows(torch.empty(0, 3), nowhere).tolist() == [[0, 0, 0]] * 2
    rows, slots, offs = ops.expert_order(torch.empty(0, 2, dtype=torch.int32), 3)
    assert (rows.shape, slots.shape, offs.tolist()) == ((0,), (0, 2), [0, 0, 0])
    assert ops.gather_rows(torch.empty(0, 3), rows, 2).shape == (0, 3)


def test_combine_undoes_gather(rng: torch.Generator) -> None:
    indices = some_indices(rng)
    rows, slots, _ = ops.expert_order(indices, 9)
    x = torch.randn(37, 8, generator=rng, dtype=torch.float64)
    back = ops.combine_rows(ops.gather_rows(x, rows, 3), slots)
    times = (indices >= 0).sum(1, keepdim=True)
    torch.testing.assert_close(back, x * times, rtol=1e-15, atol=0)


def test_gradients(rng: torch.Generator) -> None:
    rows, slots, _ = ops.expert_order(some_indices(rng, tokens=6), 9)
    double = {"dtype": torch.float64, "generator": rng, "requires_grad": True}
    x = torch.randn(6, 4, **double)
    rows_out = torch.randn(18, 4, **double)
    weights = torch.randn(6, 3, **double)
    residual = torch.randn(6, 4, **double)
    assert torch.autograd.gradcheck(lambda x: ops.gather_rows(x, rows, 3), (x,))
    assert torch.autograd.gradcheck(
        lambda r, w, s: ops.combine_rows(r, slots, w, s), (rows_out, weights, residual)
    )
    assert torch.autograd.gradcheck(lambda r: ops.combine_rows(r, slots), (rows_out,))


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_only_the_gradient_that_is_wanted(needs: tuple[bool, bool], rng: torch.Generator) -> None:
    _, slots, _ = ops.expert_order(some_indices(rng), 9)
    rows_out = torch.randn(slots.numel(), 8, generator=rng, requires_grad=needs[0])
    weights = torch.randn(slots.shape, generator=rng, requires_grad=needs[1])
    ops.combine_rows(rows_out, slots, weights).square().sum().backward()
    assert (rows_out.grad is not None, weights.grad is not None) == needs


def test_opcheck(rng: torch.Generator) -> None:
    indices = some_indices(rng)
    rows, slots, _ = ops.expert_order(indices, 9)
    x = torch.randn(37, 256, generator=rng, requires_grad=True)
    rows_out = torch.randn(slots.numel(), 16, generator=rng, dtype=torch.bfloat16, requires_grad=True)
    weights = torch.rand(slots.shape, generator=rng, requires_grad=True)
    residual = torch.randn(37, 16, generator=rng).bfloat16().requires_grad_()
    torch.library.opcheck(OPS.expert_order.default, (indices, 9))
    torch.library.opcheck(OPS.gather_rows.default, (x, rows, 3))
    torch.library.opcheck(OPS.combine_rows.default, (rows_out, slots, weights, residual))
    torch.library.opcheck(OPS.combine_rows.default, (rows_out, slots))
    codes, scales = ops.quantize_tiles(x.detach())
    # test_schema compares inputs before and after, which torch cannot do for FP8 tensors.
    checks = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(OPS.gather_tiles.default, (codes, scales, rows, 3), test_utils=checks)


def int32(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def codes(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float8_e4m3fn)


ERRORS: list[tuple[Callable[[], Any], str]] = [
    (lambda: ops.expert_order(int32(4, 2).long(), 3), "expert_order: indices must be int32, got int64"),
    (lambda: ops.expert_order(int32(4), 3), r"expert_order: indices must be \[T, K\], got shape \[4\]"),
    (lambda: ops.expert_order(int32(4, 2), 0), "expert_order: num_experts must be at least 1, got 0"),
    (lambda: ops.gather_rows(torch.zeros(4), int32(8), 2), r"x must be \[T, H\], got shape \[4\]"),
    (lambda: ops.gather_rows(int32(4, 8), int32(8), 2), "x must be bfloat16, float16 or float32, got int32"),
    (lambda: ops.gather_rows(torch.zeros(4, 8), int32(8, 1), 2), r"rows must be \[M\], got shape \[8, 1\]"),
    (lambda: ops.gather_rows(torch.zeros(4, 8), int32(8), 0), "top_k must be at least 1, got 0"),
    (
        lambda: ops.gather_tiles(torch.zeros(4, 8), torch.zeros(4, 1), int32(8), 2),
        "make them with quantize_tiles",
    ),
    (lambda: ops.gather_tiles(codes(4), torch.zeros(4, 1), int32(8), 2), r"codes must be \[T, H\]"),
    (lambda: ops.gather_tiles(codes(4, 200), torch.zeros(4, 1), int32(8), 2), r"= \[4, 2\], got \[4, 1\]"),
    (
        lambda: ops.gather_tiles(codes(4, 8), torch.zeros(4, 1).double(), int32(8), 2),
        "scales must be float32",
    ),
    (lambda: ops.combine_rows(torch.zeros(8), int32(4, 2)), r"rows_out must be \[M, H\]"),
    (lambda: ops.combine_rows(torch.zeros(8, 3), int32(8)), r"slots must be \[T, K\], got shape \[8\]"),
    (
        lambda: ops.combine_rows(torch.zeros(8, 3), int32(4, 2), torch.zeros(4)),
        r"weights must be \[T, K\] = \[4, 2\]",
    ),
    (
        lambda: ops.combine_rows(torch.zeros(8, 3), int32(4, 2), torch.zeros(4, 2).bfloat16()),
        "weights must be float32, got bfloat16",
    ),
    (
        lambda: ops.combine_rows(torch.zeros(8, 3), int32(4, 2), None, torch.zeros(4, 3).bfloat16()),
        "residual must be float32 like rows_out, got bfloat16",
    ),
    (
        lambda: ops.combine_rows(torch.zeros(8, 3), int32(4, 2), None, torch.zeros(8, 3)),
        r"residual must be \[T, H\] = \[4, 3\], got \[8, 3\]",
    ),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_argument_errors_are_the_same_from_real_and_fake(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as real:
        call()
    with FakeTensorMode(), pytest.raises(ValueError, match=message) as fake:
        call()
    assert str(real.value) == str(fake.value)


def test_values_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"expert_order: indices must lie in \[-1, 3\), got 3"):
        ops.expert_order(torch.tensor([[0, 3]], dtype=torch.int32), 3)
    with pytest.raises(ValueError, match=r"gather_rows: rows must lie in \[-1, 2\), got -2"):
        ops.gather_rows(torch.zeros(1, 8), torch.tensor([-2, 1], dtype=torch.int32), 2)
    with pytest.raises(ValueError, match=r"gather_tiles: rows must lie in \[-1, 2\), got 2"):
        ops.gather_tiles(codes(1, 8), torch.zeros(1, 1), torch.tensor([2], dtype=torch.int32), 2)
    with pytest.raises(ValueError, match=r"combine_rows: slots must lie in \[-1, 2\), got 5"):
        ops.combine_rows(torch.zeros(2, 8), torch.tensor([[5]], dtype=torch.int32))
