"""What the permute family refuses: the same words from kernels and fakes, and values before any memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cpu_tiers import CPU_TIERS
from torch import Tensor
from torch._subclasses import FakeTensorMode

from deepseek_ext import ops

OPS = torch.ops.deepseek_ext


def int32(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def codes(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float8_e4m3fn)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape)


ERRORS: list[tuple[Callable[[], Any], str]] = [
    (lambda: ops.expert_order(int32(4, 2).long(), 3), "expert_order: indices must be int32, got int64"),
    (lambda: ops.expert_order(int32(4), 3), r"indices must be \[T, K\] with K >= 1, got shape \[4\]"),
    (lambda: ops.expert_order(int32(4, 0), 3), r"indices must be \[T, K\] with K >= 1, got shape \[4, 0\]"),
    (lambda: ops.expert_order(int32(4, 2), 0), "expert_order: num_experts must be at least 1, got 0"),
    (
        lambda: ops.expert_order(int32(1, 1).expand(2**30, 2), 3),
        r"indices must hold fewer than 2\^31 choices, got shape \[1073741824, 2\]; split the tokens",
    ),
    (lambda: OPS.inverse_order(int32(4).long(), 3), "inverse_order: places must be int32, got int64"),
    (lambda: OPS.inverse_order(int32(4, 1), 3), r"places must be \[N\], got shape \[4, 1\]; flatten it"),
    (lambda: OPS.inverse_order(int32(4), -1), "inverse_order: size must not be negative, got -1"),
    (lambda: ops.gather_rows(zeros(4), int32(8), 2), r"gather_rows: x must be \[T, H\], got shape \[4\]"),
    (lambda: ops.gather_rows(int32(4, 8), int32(8), 2), "x must be bfloat16, float16 or float32, got int32"),
    (
        lambda: ops.gather_rows(zeros(4, 8).double(), int32(8), 2),
        r"x must be bfloat16, float16 or float32, got float64; convert it with \.float\(\)",
    ),
    (lambda: ops.gather_rows(zeros(4, 8), int32(8).short(), 2), "rows must be int32, got int16"),
    (lambda: ops.gather_rows(zeros(4, 8), int32(8, 1), 2), r"rows must be \[M\], got shape \[8, 1\]"),
    (lambda: ops.gather_rows(zeros(4, 8), int32(8), 0), "top_k must be at least 1, got 0"),
    (
        lambda: ops.gather_rows(zeros(4, 8), int32(8), 2, zeros(4, 3)),
        r"gather_rows: weights must be \[T, K\] = \[4, 2\], got \[4, 3\]",
    ),
    (
        lambda: ops.gather_rows(zeros(4, 8), int32(8), 2, zeros(4, 2).half()),
        "gather_rows: weights must be float32, got float16",
    ),
    (
        lambda: ops.gather_tiles(zeros(4, 8), zeros(4, 1), int32(8), 2),
        "codes must be float8_e4m3fn, got float32; make them with quantize_tiles",
    ),
    (lambda: ops.gather_tiles(codes(4), zeros(4, 1), int32(8), 2), r"codes must be \[T, H\]"),
    (lambda: ops.gather_tiles(codes(4, 200), zeros(4, 1), int32(8), 2), r"= \[4, 2\], got \[4, 1\]"),
    (lambda: ops.gather_tiles(codes(4, 8), zeros(4, 1).double(), int32(8), 2), "scales must be float32"),
    (lambda: ops.gather_tiles(codes(4, 8), zeros(4, 1), int32(8, 1), 2), r"rows must be \[M\]"),
    (lambda: ops.gather_tiles(codes(4, 8), zeros(4, 1), int32(8), -1), "top_k must be at least 1, got -1"),
    (lambda: ops.combine_rows(zeros(8), int32(4, 2)), r"combine_rows: rows_out must be \[M, H\]"),
    (lambda: ops.combine_rows(zeros(8, 3), int32(8)), r"slots must be \[T, K\] with K >= 1, got shape \[8\]"),
    (lambda: ops.combine_rows(zeros(8, 3), int32(4, 2).long()), "slots must be int32, got int64"),
    (
        lambda: ops.combine_rows(zeros(8, 3), int32(4, 2), zeros(4)),
        r"combine_rows: weights must be \[T, K\] = \[4, 2\], got \[4\]",
    ),
    (
        lambda: ops.combine_rows(zeros(8, 3), int32(4, 2), zeros(4, 2).bfloat16()),
        "weights must be float32, got bfloat16",
    ),
    (
        lambda: ops.combine_rows(zeros(8, 3), int32(4, 2), None, zeros(4, 3).bfloat16()),
        "residual must be float32 like rows_out, got bfloat16",
    ),
    (
        lambda: ops.combine_rows(zeros(8, 3), int32(4, 2), None, zeros(8, 3)),
        r"residual must be \[T, H\] = \[4, 3\], got \[8, 3\]",
    ),
    (lambda: OPS.row_dots(zeros(4, 3), zeros(8), int32(4, 2)), r"row_dots: rows_out must be \[M, H\]"),
    (lambda: OPS.row_dots(zeros(4, 3), zeros(8, 3), int32(4)), r"row_dots: slots must be \[T, K\]"),
    (
        lambda: OPS.row_dots(zeros(4, 3).half(), zeros(8, 3), int32(4, 2)),
        "row_dots: x must be float32 like rows_out, got float16",
    ),
    (
        lambda: OPS.row_dots(zeros(5, 3), zeros(8, 3), int32(4, 2)),
        r"row_dots: x must be \[T, H\] = \[4, 3\], got \[5, 3\]",
    ),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_argument_errors_are_the_same_from_real_and_fake(
    call: Callable[[], Any], message: str, backend: str
) -> None:
    with pytest.raises(ValueError, match=message) as real:
        call()
    with FakeTensorMode(), pytest.raises(ValueError, match=message) as fake:
        call()
    assert str(real.value) == str(fake.value)


LEAST, MOST = -(2**31), 2**31 - 1


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("bad", [LEAST, -2, 6, MOST])
@pytest.mark.parametrize("at", [0, 5, 1023, 1024, 2999])
def test_values_out_of_range(bad: int, at: int, backend: str) -> None:
    values = torch.zeros(3000, dtype=torch.int32)
    values[at] = bad
    where = rf"got {bad} at position {at}; pass"
    limits = r"must lie in \[-1, 6\)"
    with pytest.raises(ValueError, match=rf"expert_order: indices {limits}, {where}"):
        ops.expert_order(values.view(-1, 2), 6)
    with pytest.raises(ValueError, match=rf"inverse_order: places {limits}, {where}"):
        OPS.inverse_order(values, 6)
    with pytest.raises(ValueError, match=rf"gather_rows: rows {limits}, {where}"):
        ops.gather_rows(zeros(3, 8), values, 2)
    with pytest.raises(ValueError, match=rf"gather_rows: rows {limits}, {where}"):
        ops.gather_rows(zeros(3, 8), values, 2, zeros(3, 2))
    with pytest.raises(ValueError, match=rf"gather_tiles: rows {limits}, {where}"):
        ops.gather_tiles(codes(3, 8), zeros(3, 1), values, 2)
    with pytest.raises(ValueError, match=rf"combine_rows: slots {limits}, {where}"):
        ops.combine_rows(zeros(6, 8), values.view(-1, 2))
    with pytest.raises(ValueError, match=rf"row_dots: slots {limits}, {where}"):
        OPS.row_dots(zeros(1500, 8), zeros(6, 8), values.view(-1, 2))


def unchecked(backend: str, monkeypatch: pytest.MonkeyPatch, call: Callable[[], Tensor]) -> Tensor | None:
    """What `call` gives where the values of its arguments are not read: on a GPU. The CPU refuses them."""
    if backend in CPU_TIERS:
        with pytest.raises(ValueError, match="must"):
            call()
        return None
    with monkeypatch.context() as patch:
        patch.delenv("DSE_CHECK")
        return call()


@pytest.mark.parametrize("bad", [LEAST, -2, 6, 7, MOST])
def test_bad_values_count_as_none_and_touch_no_memory(
    bad: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels that cannot refuse a value must not follow it either."""
    table, without = (torch.tensor([[3, value], [0, 5]], dtype=torch.int32) for value in (bad, -1))
    x, y = torch.arange(16.0).view(2, 8) + 1, torch.arange(48.0).view(6, 8) + 1
    weights = torch.tensor([[2.0, 3.0], [4.0, 5.0]])
    scales = torch.tensor([[2.0], [3.0]])
    calls: list[Callable[[Tensor], Tensor]] = [
        lambda t: ops.expert_order(t, 6).rows,
        lambda t: ops.expert_order(t, 6).slots,
        lambda t: ops.expert_order(t, 6).offs,
        lambda t: OPS.inverse_order(t.flatten(), 6),
        lambda t: ops.gather_rows(x[:, :5], t.flatten(), 3),
        lambda t: ops.gather_rows(x, t.flatten(), 3),
        lambda t: ops.gather_rows(x, t.flatten(), 3, torch.ones(2, 3)),
        lambda t: ops.gather_tiles(codes(2, 8), scales, t.flatten(), 3)[1],
        lambda t: ops.combine_rows(y, t),
        lambda t: ops.combine_rows(y[:, :5], t, weights, x[:, :5]),
        lambda t: OPS.row_dots(x, y, t),
    ]
    for call in calls:
        got = unchecked(backend, monkeypatch, lambda call=call: call(table))
        assert got is None or torch.equal(got, call(without))


def test_a_place_named_twice_has_its_last_namer(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody can refuse it: the same every time, whatever ran first."""
    places = torch.zeros(300, dtype=torch.int32)
    got = unchecked(backend, monkeypatch, lambda: OPS.inverse_order(places, 2))
    assert got is None or got.tolist() == [299, -1]


def test_the_first_of_several_bad_values_is_named(backend: str) -> None:
    with pytest.raises(ValueError, match=r"rows must lie in \[-1, 2\), got 7 at position 1"):
        ops.gather_rows(zeros(1, 8), ints(0, 7, -9), 2)


def test_a_top_k_beyond_all_bounds_is_no_overflow(backend: str) -> None:
    assert ops.gather_rows(zeros(3, 2), ints(MOST, 0), 2**62).shape == (2, 2)


def test_inverse_order_refuses_a_place_named_twice(backend: str) -> None:
    with pytest.raises(ValueError, match="places must not name a place twice, got 2 again at position 4"):
        OPS.inverse_order(ints(2, -1, 0, -1, 2), 3)
    assert OPS.inverse_order(ints(2, -1, 0, -1, 1), 3).tolist() == [2, 4, 0]
