"""Properties of the layouts, for any shape: where every row's column goes, what fills the gaps, what fits."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_ext import ops


@st.composite
def groups(draw: st.DrawFn) -> tuple[int, list[int]]:
    """Rows, and ascending group ends within them."""
    m = draw(st.integers(0, 700))
    ends = draw(st.lists(st.integers(0, m), min_size=1, max_size=9).map(sorted))
    return m, ends


def starts_of(ends: list[int]) -> list[int]:
    starts = [0]
    for begin, end in zip([0, *ends], ends, strict=False):
        starts.append(starts[-1] + -(-(end - begin) // 128) * 128)
    return starts


@settings(max_examples=60, deadline=None)
@given(groups())
def test_capacity_holds_every_split(split):
    m, ends = split
    assert starts_of(ends)[-1] <= 128 * (m // 128 + len(ends))


@settings(max_examples=40, deadline=None)
@given(groups(), st.integers(1, 3))
def test_every_row_has_one_column_and_gaps_are_zero(split, k):
    """Rows hold their own number in powers of two exactly, so the columns tell which row they came from."""
    m, ends = split
    numbers = torch.arange(1, m + 1, dtype=torch.int32)
    digits = torch.stack(
        [(numbers >> 3 * i & 7) for i in range(4)], 1
    ).float()  # 0..7: exact at any tile's scale
    x = torch.cat([digits * 64, torch.full((m, k), 448.0)], 1)
    codes, scales = ops.quantize_tiles_transposed(x, torch.tensor(ends, dtype=torch.int32), power_of_2=True)
    assert codes.shape == (4 + k, 128 * (m // 128 + len(ends)))
    columns = ops.dequantize_tiles(codes, scales).T
    expected = torch.zeros_like(columns)
    for start, begin, end in zip(starts_of(ends), [0, *ends], ends, strict=False):
        expected[start : start + end - begin] = x[begin:end]
    assert torch.equal(columns, expected)
    assert torch.equal(codes.view(torch.uint8).T == 0, expected == 0)
    empty = (expected.unflatten(0, (-1, 128)) == 0).all(1)
    assert (scales.T[empty] == 1).all()


@settings(max_examples=40, deadline=None)
@given(groups())
def test_rows_past_the_last_group_are_never_read(split):
    m, ends = split
    offs = torch.tensor(ends, dtype=torch.int32)
    x = torch.ones(m, 130)
    x[ends[-1] :] = torch.nan
    codes, scales, codes_t, scales_t = ops.quantize_tiles_both(x, offs)
    assert (codes[ends[-1] :].view(torch.uint8) == 0).all()
    assert (scales[ends[-1] :] == 1).all()
    assert not codes_t.float().isnan().any()
    assert torch.equal(ops.retile(*ops.quantize_tiles(x), offs)[1] > 0, scales_t > 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), st.integers(0, 300), st.booleans())
def test_transposing_blocks_twice_changes_nothing(n, k, stacked):
    w = torch.linspace(-3, 3, max(n * k, 1))[: n * k].view(n, k)
    codes, scales = ops.quantize_blocks(torch.stack([w, -w]) if stacked else w)
    again, scales_again = ops.transpose_blocks(*ops.transpose_blocks(codes, scales))
    assert torch.equal(again.view(torch.uint8), codes.view(torch.uint8))
    assert torch.equal(scales_again, scales)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 400), st.integers(0, 5))
def test_e5m6_sizes(k, m):
    packed, scales = ops.quantize_e5m6(torch.ones(m, k))
    assert packed.shape == (m, 12 * -(-k // 8))
    assert scales.shape == (m, -(-k // 128))
    assert torch.equal(ops.dequantize_e5m6(packed, scales, k), torch.ones(m, k))
