"""The permute family: the order against loops in plain Python, rows bit for bit against the reference."""

from __future__ import annotations

import itertools

import backends
import pytest
import torch
from cpu_tiers import CPU_TIERS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from permute_inputs import (
    FLOATS,
    WIDTHS,
    any_bits,
    assert_same_bits,
    assert_same_numbers,
    bits,
    of_all_magnitudes,
    on_one_and_two_threads,
    routings,
    some_indices,
)
from torch import Tensor

from deepseek_ext import ops
from deepseek_ext.reference import permute as reference

OPS = torch.ops.deepseek_ext
# A backend is set once for all examples.
BACKEND_OF_ALL = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
Case = tuple[int, list[list[int]], int]


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


@settings(max_examples=100, **BACKEND_OF_ALL)
@given(case=routings)
def test_expert_order_is_the_stable_counting_sort(backend: str, case: Case) -> None:
    experts, indices, top_k = case
    order = ops.expert_order(torch.tensor(indices, dtype=torch.int32).view(-1, top_k), experts)
    rows, slots, offs = order_by_hand(indices, experts)
    assert order.rows.tolist() == rows
    assert order.slots.tolist() == slots
    assert order.offs.tolist() == offs
    assert {t.dtype for t in order} == {torch.int32}


@settings(max_examples=50, **BACKEND_OF_ALL)
@given(case=routings)
def test_rows_and_slots_are_inverse(backend: str, case: Case) -> None:
    experts, indices, top_k = case
    rows, slots, offs = ops.expert_order(torch.tensor(indices, dtype=torch.int32).view(-1, top_k), experts)
    used = int(offs[-1])
    assert torch.equal(slots.flatten()[rows[:used].long()], torch.arange(used, dtype=torch.int32))
    assert bool((rows[used:] == -1).all())
    assert int((slots >= 0).sum()) == used == sum(e >= 0 for token in indices for e in token)
    assert torch.equal(OPS.inverse_order(rows, rows.numel()), slots.flatten())
    assert torch.equal(OPS.inverse_order(slots.flatten(), rows.numel()), rows)


@settings(max_examples=50, **BACKEND_OF_ALL)
@given(case=routings, width=st.integers(0, 20))
def test_combine_undoes_gather(backend: str, case: Case, width: int) -> None:
    """Every token comes back as often as it was sent, and weights of 1/count bring it back once."""
    experts, indices, top_k = case
    table = torch.tensor(indices, dtype=torch.int32).view(-1, top_k)
    rows, slots, _ = ops.expert_order(table, experts)
    x = torch.randint(-99, 100, (len(table), width)).float()
    count = (table >= 0).sum(1, keepdim=True)
    gathered = ops.gather_rows(x, rows, top_k)
    assert torch.equal(ops.combine_rows(gathered, slots), x * count)
    halves = torch.full(slots.shape, 0.5)
    assert torch.equal(ops.combine_rows(gathered, slots, halves), x * count / 2)
    assert torch.equal(ops.combine_rows(ops.gather_rows(x, rows, top_k, halves), slots), x * count / 2)
    assert torch.equal(ops.combine_rows(gathered, slots, None, x), x * (count + 1))


@pytest.mark.parametrize("case", ["all to one", "all absent", "last expert only"])
def test_expert_order_extremes(case: str, backend: str) -> None:
    value = {"all to one": 2, "all absent": -1, "last expert only": 6}[case]
    indices = torch.full((50, 2), value, dtype=torch.int32)
    rows, slots, offs = ops.expert_order(indices, 7)
    expected = order_by_hand(indices.tolist(), 7)
    assert (rows.tolist(), slots.tolist(), offs.tolist()) == expected


@pytest.mark.parametrize("top_k", [1, 8])
@pytest.mark.parametrize("experts", [1, 256])
def test_expert_order_shared_between_threads(
    top_k: int, experts: int, backend: str, rng: torch.Generator
) -> None:
    choices = 100_001 if backend in CPU_TIERS else 20_001  # several threads of a CPU, many warps of a GPU
    indices = torch.randint(-1, experts, (choices // top_k, top_k), generator=rng, dtype=torch.int32)
    wanted = reference.expert_order(indices, experts)
    for got in on_one_and_two_threads(lambda: ops.expert_order(indices, experts)):
        for one, other in zip(got, wanted, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("experts", [1500, 13_000])
def test_expert_order_of_more_experts_than_fit_in_a_block(
    experts: int, backend: str, rng: torch.Generator
) -> None:
    """On a GPU: fewer warps share a block's memory, or none; and one round of 1024 experts is not enough."""
    indices = torch.randint(-1, experts, (4001, 2), generator=rng, dtype=torch.int32)
    wanted = reference.expert_order(indices, experts)
    for one, other in zip(ops.expert_order(indices, experts), wanted, strict=True):
        assert torch.equal(one, other)


def test_rows_past_the_last_offset_are_zero(backend: str, rng: torch.Generator) -> None:
    """What nobody wrote may be NaN, and 0 * NaN is NaN in whatever sums it."""
    indices = torch.tensor([[0, -1], [2, -1], [-1, -1]], dtype=torch.int32)
    rows, _, offs = ops.expert_order(indices, 3)
    assert offs.tolist() == [1, 1, 2]
    x, weights = torch.randn(3, 72, generator=rng), torch.full((3, 2), torch.nan)
    weights[0, 0] = weights[1, 0] = 1.0
    for gathered in (ops.gather_rows(x, rows, 2), ops.gather_rows(x, rows, 2, weights)):
        assert torch.equal(gathered[:2], x[:2])
        assert torch.equal(gathered[2:], torch.zeros(4, 72))
    codes, scales = ops.gather_tiles(*ops.quantize_tiles(x), rows, 2)
    assert not codes[2:].view(torch.uint8).any()
    assert bool((scales[2:] == 1).all())


def test_expert_order_of_strided_indices(backend: str, rng: torch.Generator) -> None:
    wide = torch.randint(0, 5, (6, 40), generator=rng, dtype=torch.int32)
    for one, other in zip(
        ops.expert_order(wide.T[:, ::2], 5), ops.expert_order(wide.T[:, ::2].contiguous(), 5), strict=True
    ):
        assert torch.equal(one, other)


def views(x: Tensor) -> dict[str, Tensor]:
    """x [T, H] as it is, with rows apart, and transposed in memory."""
    return {
        "contiguous": x,
        "rows apart": torch.cat([x, x], 1)[:, : x.shape[1]],
        "transposed": x.T.contiguous().T,
    }


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gather_rows_copies_every_bit(dtype: torch.dtype, backend: str, rng: torch.Generator) -> None:
    rows, _, _ = ops.expert_order(some_indices(rng), 9)
    for width in WIDTHS:
        x = any_bits(rng, 37, width, dtype=dtype)
        wanted = reference.gather_rows(bits(x), rows, 3).view(dtype)
        for view in views(x).values():
            for got in on_one_and_two_threads(lambda view=view: ops.gather_rows(view, rows, 3)):
                assert_same_bits(got, wanted)


def test_gather_rows_by_hand(backend: str, rng: torch.Generator) -> None:
    rows, _, _ = ops.expert_order(some_indices(rng), 9)
    x = torch.randn(37, 40, generator=rng)
    gathered = ops.gather_rows(x, rows, 3)
    for i, row in enumerate(rows.tolist()):
        assert torch.equal(gathered[i], torch.zeros(40) if row < 0 else x[row // 3]), f"row {i} is {row}"


def test_past_the_cache(cpu_tier: str, rng: torch.Generator) -> None:
    """40 MiB: beyond the last-level cache of many CPUs, where stores bypass it and tokens are scattered."""
    rows, slots, _ = ops.expert_order(some_indices(rng, tokens=2048, top_k=4), 9)
    x = any_bits(rng, 2048, 1024, dtype=torch.float32)
    wanted = torch.where(rows[:, None] < 0, 0, bits(x)[rows.clamp(min=0) // 4])
    for got in on_one_and_two_threads(lambda: ops.gather_rows(x, rows, 4)):
        assert torch.equal(bits(got), wanted)
    some = torch.randint(0, 2048, (64,), generator=rng)
    rows_out, weights = x.new_empty(8192, 1024).normal_(generator=rng), torch.rand(2048, 4, generator=rng)
    few = reference.combine_rows(rows_out, slots[some], weights[some])
    for got in on_one_and_two_threads(lambda: ops.combine_rows(rows_out, slots, weights)):
        assert_same_bits(got[some], few)
    x = x.normal_(generator=rng)
    few = reference.gather_rows(x, rows[some], 4, weights)
    for got in on_one_and_two_threads(lambda: ops.gather_rows(x, rows, 4, weights)):
        assert_same_bits(got[some], few)


@pytest.mark.parametrize("top_k", [1, 2, 3, 5, 7, 641, 2**16 + 1, 2**29 + 3, 2**30, 2**31 - 1, 2**40])
def test_gather_rows_divides_by_any_top_k(top_k: int, backend: str) -> None:
    """Around the first and last row of each token that an int32 can name."""
    tokens = min(100, (2**31 - 1) // top_k + 1)
    x = torch.arange(tokens, dtype=torch.float32)[:, None]
    ends = {row for t in range(tokens + 1) for row in (t * top_k - 1, t * top_k, t * top_k + 1)}
    numbers = sorted(row for row in ends if 0 <= row < min(tokens * top_k, 2**31))
    rows = torch.tensor([-1, *numbers], dtype=torch.int32)
    got = ops.gather_rows(x, rows, top_k)
    assert got.flatten().tolist() == [0] + [row // top_k for row in numbers]


def test_gather_rows_takes_rows_in_any_order_and_number(backend: str, rng: torch.Generator) -> None:
    x = torch.randn(5, 9, generator=rng)
    rows = torch.tensor([9, 9, -1, 0, 3], dtype=torch.int32)
    assert torch.equal(ops.gather_rows(x, rows, 2), torch.stack([x[4], x[4], x[0] * 0, x[0], x[1]]))
    strided = torch.stack([rows, rows], 1)[:, 0]
    assert torch.equal(ops.gather_rows(x, strided, 2), ops.gather_rows(x, rows, 2))


@pytest.mark.parametrize("width", [1, 64, 128, 200])
def test_gather_tiles(width: int, backend: str, rng: torch.Generator) -> None:
    rows, _, _ = ops.expert_order(some_indices(rng), 9)
    codes = torch.randint(0, 256, (37, width), generator=rng, dtype=torch.uint8)  # NaN codes included
    scales = torch.rand(37, (width + 127) // 128, generator=rng)
    wanted = reference.gather_tiles(codes.view(torch.float8_e4m3fn), scales, rows, 3)
    assert bool((wanted[1][rows < 0] == 1).all())
    for code_view, scale_view in itertools.product(views(codes).values(), views(scales).values()):
        got = ops.gather_tiles(code_view.view(torch.float8_e4m3fn), scale_view, rows, 3)
        for one, other in zip(got, wanted, strict=True):
            assert_same_bits(one, other)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("with_residual", [False, True], ids=["alone", "residual"])
def test_combine_rows_bit_for_bit(
    dtype: torch.dtype,
    weighted: bool,
    with_residual: bool,
    backend: str,
    rng: torch.Generator,
) -> None:
    for width, top_k in zip(WIDTHS, (2, 3, 5, 1, 8, 4, 9), strict=True):
        _, slots, _ = ops.expert_order(some_indices(rng, top_k=top_k, experts=10), 10)
        rows_out = of_all_magnitudes(rng, slots.numel(), width, dtype=dtype)
        weights = torch.randn(slots.shape, generator=rng) if weighted else None
        residual = of_all_magnitudes(rng, 37, width, dtype=dtype) if with_residual else None
        wanted = reference.combine_rows(rows_out, slots, weights, residual)
        arguments = rows_out, slots, weights, residual
        for got in on_one_and_two_threads(lambda arguments=arguments: ops.combine_rows(*arguments)):
            assert_same_numbers(got, wanted)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_weighted_gather_bit_for_bit(dtype: torch.dtype, backend: str, rng: torch.Generator) -> None:
    rows, _, _ = ops.expert_order(some_indices(rng), 9)
    for width in WIDTHS:
        x, weights = of_all_magnitudes(rng, 37, width, dtype=dtype), torch.randn(37, 3, generator=rng)
        wanted = reference.gather_rows(x, rows, 3, weights)
        arguments = x, rows, 3, weights
        for got in on_one_and_two_threads(lambda arguments=arguments: ops.gather_rows(*arguments)):
            assert_same_numbers(got, wanted)


def test_combine_rows_in_numpy_s_order(backend: str, rng: torch.Generator) -> None:
    """The order of the FP32 sum is part of the meaning, so numpy's FP32 in that order gives the same bits."""
    _, slots, _ = ops.expert_order(some_indices(rng, top_k=5), 9)
    rows_out = torch.randn(slots.numel(), 21, generator=rng) * 1e3
    weights, residual = torch.rand(slots.shape, generator=rng), torch.randn(37, 21, generator=rng)
    combined = ops.combine_rows(rows_out, slots, weights, residual)
    for t in range(37):
        total = torch.zeros(21).numpy()
        for k, slot in enumerate(slots[t].tolist()):
            if slot >= 0:
                total = total + rows_out[slot].numpy() * weights[t, k].numpy()
        assert torch.equal(combined[t], torch.from_numpy(total + residual[t].numpy())), f"token {t}"


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_combine_and_dots_take_any_strides(dtype: torch.dtype, backend: str, rng: torch.Generator) -> None:
    _, slots, _ = ops.expert_order(some_indices(rng), 9)
    rows_out = torch.randn(slots.numel(), 40, generator=rng).to(dtype)
    x = torch.randn(37, 40, generator=rng).to(dtype)
    weights = torch.rand(slots.shape, generator=rng)
    wanted = ops.combine_rows(rows_out, slots, weights, x), OPS.row_dots(x, rows_out, slots)
    layouts = (views(t).values() for t in (rows_out, slots, weights, x))
    for r, s, w, y in zip(*layouts, strict=True):
        assert_same_bits(ops.combine_rows(r, s, w, y), wanted[0])
        assert_same_bits(OPS.row_dots(y, r, s), wanted[1])


def test_a_missing_slot_adds_nothing_even_beside_nan(backend: str) -> None:
    rows_out = torch.full((2, 3), float("nan"))
    slots = torch.tensor([[-1, -1]], dtype=torch.int32)
    assert ops.combine_rows(rows_out, slots).tolist() == [[0, 0, 0]]
    weights = torch.tensor([[torch.nan, torch.inf]])
    assert ops.combine_rows(rows_out, slots, weights).tolist() == [[0, 0, 0]]
    assert reference.combine_rows(rows_out, slots, weights).tolist() == [[0, 0, 0]]
    assert OPS.row_dots(torch.full((1, 3), torch.inf), rows_out, slots).tolist() == [[0, 0]]


def test_a_row_that_is_not_finite_reaches_its_token_only(backend: str, rng: torch.Generator) -> None:
    _, slots, _ = ops.expert_order(some_indices(rng), 9)
    rows_out = torch.randn(slots.numel(), 40, generator=rng).bfloat16()
    rows_out[7, 3] = torch.nan
    token = int((slots == 7).any(1).nonzero())
    bad = ops.combine_rows(rows_out, slots).isnan().nonzero().tolist()
    assert bad == [[token, 3]]


def test_no_rows_and_no_tokens(backend: str) -> None:
    nowhere = torch.tensor([[-1, -1], [-1, -1]], dtype=torch.int32)
    assert ops.combine_rows(torch.empty(0, 3), nowhere).tolist() == [[0, 0, 0]] * 2
    assert OPS.row_dots(torch.ones(2, 3), torch.empty(0, 3), nowhere).tolist() == [[0, 0]] * 2
    rows, slots, offs = ops.expert_order(torch.empty(0, 2, dtype=torch.int32), 3)
    assert (rows.shape, slots.shape, offs.tolist()) == ((0,), (0, 2), [0, 0, 0])
    assert ops.gather_rows(torch.empty(0, 3), rows, 2).shape == (0, 3)
    assert ops.combine_rows(torch.empty(4, 3), slots).shape == (0, 3)
    tiles = ops.gather_tiles(torch.empty(0, 3).to(torch.float8_e4m3fn), torch.empty(0, 1), rows, 2)
    assert [t.shape for t in tiles] == [(0, 3), (0, 1)]
    absent = torch.full((3,), -1, dtype=torch.int32)
    assert ops.gather_rows(torch.empty(0, 2), absent, 1).tolist() == [[0, 0]] * 3


def dot_bound(x: Tensor, rows_out: Tensor, slots: Tensor) -> Tensor:
    """64 partial sums of ceil(H/64) products each, added in pairs: ceil(H/64) + 7 roundings, one spare."""
    width = x.shape[1]
    magnitudes = reference.row_dots(x.double().abs(), rows_out.double().abs(), slots)
    return (-(-width // 64) + 8) * 2.0**-24 * magnitudes + width * 2.0**-149


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_row_dots_within_their_bound_and_the_same_everywhere(
    dtype: torch.dtype, backend: str, rng: torch.Generator
) -> None:
    for width in WIDTHS:
        _, slots, _ = ops.expert_order(some_indices(rng), 9)
        x, rows_out = (torch.randn(n, width, generator=rng).to(dtype) for n in (37, slots.numel()))
        dots, again = on_one_and_two_threads(lambda r=rows_out, x=x, s=slots: OPS.row_dots(x, r, s))
        assert_same_bits(dots, again)
        exact = reference.row_dots(x.double(), rows_out.double(), slots)
        assert bool(((dots - exact).abs() <= dot_bound(x, rows_out, slots)).all())
        with backends.on_cpu(), ops.using_cpu_capability("generic"):
            assert_same_bits(dots, OPS.row_dots(x, rows_out, slots))


def test_denormals_survive_where_the_caller_flushes_them(backend: str, rng: torch.Generator) -> None:
    rows, slots, _ = ops.expert_order(some_indices(rng), 9)
    x = torch.randn(37, 70, generator=rng) * 2.0**-130
    factors = torch.randn(37, 70, generator=rng) * 2.0**-10
    weights = torch.rand(slots.shape, generator=rng)

    def results() -> list[Tensor]:
        gathered = ops.gather_rows(x, rows, 3)
        weighted = ops.gather_rows(x, rows, 3, weights)
        combined = ops.combine_rows(gathered, slots, weights, x)
        return [gathered, weighted, combined, OPS.row_dots(factors, gathered, slots)]

    wanted = results()
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    try:
        got = results()
    finally:
        torch.set_flush_denormal(False)
    for one, other in zip(got, wanted, strict=True):
        assert_same_bits(one, other)
        assert bool(((one != 0) & (one.abs() < 2.0**-126)).any()), "the test needs denormals"
