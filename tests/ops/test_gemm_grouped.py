"""grouped_gemm and grouped_gemm_wgrad on every backend, against the products of the single experts."""

from __future__ import annotations

import pytest
import torch
from gemm_inputs import Operands, agree, assert_within_bound, random_codes, random_scales, tiles
from torch import Tensor

from deepseek_ext import ops

# Rows of each expert: empty ones first, last and between, one row, whole blocks, an expert with everything.
LOADS = [
    [0, 3, 0, 1, 5, 0],
    [1] * 20,
    [64, 0, 0],
    [0, 0, 200, 1],
    [129, 128, 127, 0, 7, 390],
    [0, 0],
]


def offsets(loads: list[int]) -> Tensor:
    return torch.tensor(loads).cumsum(0).to(torch.int32)


def grouped_operands(loads: list[int], n: int, k: int, rng: torch.Generator, unused: int = 0) -> Operands:
    rows, experts = sum(loads) + unused, len(loads)
    return Operands(
        random_codes((rows, k), rng),
        random_scales((rows, tiles(k)), rng),
        random_codes((experts, n, k), rng),
        random_scales((experts, tiles(n), tiles(k)), rng),
    )


def expert(o: Operands, loads: list[int], e: int) -> Operands:
    start = sum(loads[:e])
    end = start + loads[e]
    return Operands(o.a[start:end], o.a_scales[start:end], o.b[e], o.b_scales[e])


def grouped(o: Operands, loads: list[int]) -> Tensor:
    return ops.grouped_gemm(*o, offsets(loads), out_dtype=torch.float32)


def transposed_operands(loads: list[int], n: int, k: int, rng: torch.Generator, spare: int = 0) -> Operands:
    """Codes of the grouped transposed layout: zeros in the gaps."""
    columns = 128 * (sum(tiles(load) for load in loads) + spare)
    a, b = random_codes((n, columns), rng), random_codes((k, columns), rng)
    used = torch.zeros(columns, dtype=torch.bool)
    start = 0
    for load in loads:
        used[start : start + load] = True
        start += 128 * tiles(load)
    a.view(torch.uint8)[:, ~used] = 0
    b.view(torch.uint8)[:, ~used] = 0
    return Operands(a, random_scales((n, columns // 128), rng), b, random_scales((k, columns // 128), rng))


def expert_columns(o: Operands, loads: list[int], e: int) -> Operands:
    start = sum(tiles(load) for load in loads[:e])
    end = start + tiles(loads[e])
    codes, scales = slice(128 * start, 128 * end), slice(start, end)
    return Operands(o.a[:, codes], o.a_scales[:, scales], o.b[:, codes], o.b_scales[:, scales])


def wgrad(o: Operands, loads: list[int]) -> Tensor:
    return ops.grouped_gemm_wgrad(*o, offsets(loads))


@pytest.mark.parametrize("loads", LOADS, ids=str)
@pytest.mark.parametrize("nk", [(70, 300), (256, 128)], ids=str)
def test_error_bound(backend: str, loads: list[int], nk: tuple[int, int], rng: torch.Generator) -> None:
    o = grouped_operands(loads, *nk, rng)
    result = grouped(o, loads)
    start = 0
    for e, load in enumerate(loads):
        assert_within_bound(result[start : start + load], expert(o, loads, e))
        start += load
    assert torch.equal(ops.grouped_gemm(*o, offsets(loads)), result.bfloat16())


@pytest.mark.parametrize("loads", LOADS, ids=str)
def test_transposed_weights(backend: str, loads: list[int], rng: torch.Generator) -> None:
    """dgrad: the transposed view of [E, N, K] weights and scales."""
    k, n = 130, 200
    weights = grouped_operands(loads, k, n, rng)
    a = grouped_operands(loads, n, k, rng)
    o = Operands(a.a, a.a_scales, weights.b.transpose(1, 2), weights.b_scales.transpose(1, 2))
    result = grouped(o, loads)
    start = 0
    for e, load in enumerate(loads):
        assert_within_bound(result[start : start + load], expert(o, loads, e))
        start += load


@pytest.mark.parametrize("loads", [[3, 0, 4], [100, 0, 30]], ids=str)
def test_rows_of_no_expert_are_zero_and_never_read(
    backend: str, loads: list[int], rng: torch.Generator
) -> None:
    o = grouped_operands(loads, 70, 300, rng, unused=9)
    used = sum(loads)
    o.a.view(torch.uint8)[used:] = 0x7F
    o.a_scales[used:] = torch.nan
    result = grouped(o, loads)
    assert torch.equal(result[used:], torch.zeros(9, 70))
    assert result[:used].isfinite().all()


def test_layouts_and_strides(backend: str, rng: torch.Generator) -> None:
    loads = [40, 0, 50]
    o = grouped_operands(loads, 70, 300, rng)
    plain = grouped(o, loads)
    every_other = torch.zeros(3, 2, 70, 300).to(torch.float8_e4m3fn)[:, 0]
    every_other.copy_(o.b)
    turned = o.b.transpose(1, 2).contiguous().transpose(1, 2)
    mixed = o.b.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    scales = o.b_scales.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    for b in (every_other, turned, mixed):
        assert agree(grouped(Operands(o.a, o.a_scales, b, scales), loads), plain)
    strided = torch.stack([offsets(loads), offsets(loads) * 0], 1)[:, 0]
    assert torch.equal(ops.grouped_gemm(*o, strided, out_dtype=torch.float32), plain)


def test_rows_do_not_depend_on_other_rows(backend: str, rng: torch.Generator) -> None:
    """Within 64 rows in all, and above 64: the same row with other loads around it."""
    o = grouped_operands([200, 200, 200], 130, 300, rng)

    def rows(loads: list[int]) -> list[Tensor]:
        start, parts = 0, []
        for e, load in enumerate(loads):
            parts.append(slice(200 * e, 200 * e + load))
            start += load
        a = torch.cat([o.a.view(torch.uint8)[part] for part in parts]).view(torch.float8_e4m3fn)
        scales = torch.cat([o.a_scales[part] for part in parts])
        return list(grouped(Operands(a, scales, o.b, o.b_scales), loads).split(loads))

    for choices in (
        [[8, 0, 1], [3, 60, 1], [64, 0, 0], [1, 1, 1]],
        [[65, 0, 0], [3, 200, 1], [200, 200, 200]],
    ):
        results = [rows(loads) for loads in choices]
        for e in range(3):
            parts = [result[e] for result in results]
            for part in parts:
                for other in parts:
                    common = min(len(part), len(other))
                    assert torch.equal(part[:common], other[:common])


@pytest.mark.parametrize("loads", LOADS, ids=str)
@pytest.mark.parametrize("nk", [(70, 130), (5, 64)], ids=str)
def test_wgrad_error_bound(backend: str, loads: list[int], nk: tuple[int, int], rng: torch.Generator) -> None:
    o = transposed_operands(loads, *nk, rng)
    result = wgrad(o, loads)
    for e, load in enumerate(loads):
        assert_within_bound(result[e], expert_columns(o, loads, e))
        if load == 0:
            assert torch.equal(result[e], torch.zeros(nk))


@pytest.mark.parametrize("n", [6, 70])
def test_wgrad_accumulates_once(backend: str, n: int, rng: torch.Generator) -> None:
    loads = [40, 0, 129, 3]
    o = transposed_operands(loads, n, 130, rng)
    whole = torch.randn(4, n + 2, 140, generator=rng)
    before = whole.clone()
    out = whole[:, 1 : n + 1, 3:133]
    ops.grouped_gemm_wgrad_accumulate_(out, *o, offsets(loads))
    expected = before.clone()
    expected[:, 1 : n + 1, 3:133] += wgrad(o, loads)
    assert torch.equal(whole, expected)
    assert torch.equal(whole[1], before[1]), "an expert without rows keeps what it has"


def test_wgrad_ignores_columns_past_the_last_expert(backend: str, rng: torch.Generator) -> None:
    loads = [40, 129]
    o = transposed_operands(loads, 30, 50, rng, spare=2)
    plain = wgrad(o, loads)
    for codes, scales in ((o.a, o.a_scales), (o.b, o.b_scales)):
        codes.view(torch.uint8)[:, 3 * 128 :] = 0x7F
        scales[:, 3:] = torch.nan
    assert torch.equal(wgrad(o, loads), plain)


def test_wgrad_strides(backend: str, rng: torch.Generator) -> None:
    loads = [40, 129]
    o = transposed_operands(loads, 30, 50, rng)
    turned = Operands(*(x.t().contiguous().t() for x in o))
    assert torch.equal(wgrad(turned, loads), wgrad(o, loads))


def test_wgrad_nan_poisons_one_row_or_column_of_one_expert(backend: str, rng: torch.Generator) -> None:
    loads = [40, 129, 30]
    o = transposed_operands(loads, 30, 50, rng)
    clean = wgrad(o, loads)
    o.a.view(torch.uint8)[7, 128 + 128] = 0x7F  # the last row of expert 1
    o.b.view(torch.uint8)[11, 128] = 0xFF
    expected = torch.zeros(3, 30, 50, dtype=torch.bool)
    expected[1, 7] = True
    expected[1, :, 11] = True
    result = wgrad(o, loads)
    assert torch.equal(result.isnan(), expected)
    assert torch.equal(result[~expected], clean[~expected])


def test_same_bits_for_any_number_of_threads(cpu_tier: str, rng: torch.Generator) -> None:
    loads = [300, 0, 17, 129, 1, 64]
    forward = grouped_operands(loads, 260, 300, rng)
    few = grouped_operands([3, 0, 9, 20], 1000, 600, rng)
    back = transposed_operands(loads, 200, 260, rng)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append([grouped(forward, loads), grouped(few, [3, 0, 9, 20]), wgrad(back, loads)])
    finally:
        torch.set_num_threads(before)
    for result in results:
        assert all(torch.equal(x, y) for x, y in zip(result, results[0], strict=True))


@pytest.mark.parametrize(("n", "k"), [(0, 7), (7, 0), (0, 0)])
def test_empty(backend: str, n: int, k: int, rng: torch.Generator) -> None:
    for loads in ([3, 0, 70], [0, 0], []):
        o = grouped_operands(loads, n, k, rng)
        assert torch.equal(grouped(o, loads), torch.zeros(sum(loads), n))
        o = transposed_operands(loads, n, k, rng)
        assert torch.equal(wgrad(o, loads), torch.zeros(len(loads), n, k))


def test_rows_without_any_expert(backend: str, rng: torch.Generator) -> None:
    codes, scales = ops.quantize_tiles(torch.randn(5, 200, generator=rng))
    weight, weight_scales = ops.quantize_blocks(torch.zeros(0, 72, 200))
    offs = torch.zeros(0, dtype=torch.int32)
    out = ops.grouped_gemm(codes, scales, weight, weight_scales, offs, out_dtype=torch.float32)
    assert torch.equal(out, torch.zeros(5, 72))
