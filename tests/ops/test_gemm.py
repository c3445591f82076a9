"""gemm and gemm_accumulate_ on every backend: the error bound, and everything promised to the bit."""

from __future__ import annotations

import pytest
import torch
from gemm_inputs import (
    Operands,
    agree,
    assert_within_bound,
    bound_of,
    exact,
    random_codes,
    random_operands,
    random_scales,
    tiles,
    worst,
)

from deepseek_ext import ops

# Around vector widths, panel (64), row tile (6), row block (384), scale block (128) and chunk (64).
SHAPES = [
    (1, 1, 1),
    (1, 128, 128),
    (2, 130, 127),
    (3, 17, 5),
    (5, 576, 300),
    (8, 200, 1000),
    (9, 10, 130),
    (13, 16, 64),
    (64, 576, 512),
    (65, 63, 129),
    (100, 257, 576),
    (257, 48, 192),
    (385, 65, 70),
    (800, 33, 31),
]


def fp32(o: Operands) -> torch.Tensor:
    return ops.gemm(*o, out_dtype=torch.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("b_tiles", [False, True], ids=["blocks", "tiles"])
def test_error_bound(backend: str, shape: tuple[int, int, int], b_tiles: bool, rng: torch.Generator) -> None:
    o = random_operands(*shape, rng, b_tiles=b_tiles)
    assert_within_bound(fp32(o), o)


@pytest.mark.parametrize("m", [4, 40])
@pytest.mark.parametrize("kind", ["positive", "subnormal"])
def test_error_bound_for_adversarial_codes(backend: str, m: int, kind: str, rng: torch.Generator) -> None:
    """Codes of one sign never cancel, so that roundings add up; subnormal codes must not be flushed."""
    o = random_operands(m, 70, 2000, rng, kind=kind)
    assert_within_bound(fp32(o), o)


@pytest.mark.parametrize("m", [4, 40])
@pytest.mark.parametrize(("low", "high"), [(-62, -40), (30, 50)], ids=["tiny", "huge"])
def test_error_bound_for_extreme_scales(
    backend: str, m: int, low: float, high: float, rng: torch.Generator
) -> None:
    o = random_operands(m, 70, 300, rng, low=low, high=high)
    assert_within_bound(fp32(o), o)


@pytest.mark.parametrize("m", [4, 40])
def test_every_code_is_decoded_exactly(backend: str, m: int) -> None:
    """A picks one code of B at a time: the product is that code, bit for bit."""
    b = torch.arange(256, dtype=torch.uint8)[None, :].expand(70, 256).contiguous().view(torch.float8_e4m3fn)
    b = torch.where(b.float().isnan(), torch.zeros((), dtype=torch.float), b.float()).to(torch.float8_e4m3fn)
    ones = torch.ones
    for start in range(0, 256, m):
        a = torch.eye(256)[start : start + m].to(torch.float8_e4m3fn)
        for codes in (b, b.t().contiguous().t()):
            product = ops.gemm(a, ones(a.shape[0], 2), codes, ones(1, 2), out_dtype=torch.float32)
            assert torch.equal(product, b.float()[:, start : start + m].t())


@pytest.mark.parametrize("m", [4, 40])
def test_subnormal_codes_survive_flush_to_zero(cpu_tier: str, m: int, rng: torch.Generator) -> None:
    o = random_operands(m, 70, 200, rng, kind="subnormal", low=0, high=1)
    try:
        torch.set_flush_denormal(True)
        result = fp32(o)
    finally:
        torch.set_flush_denormal(False)
    assert_within_bound(result, o)


@pytest.mark.parametrize("m", [4, 40])
def test_bf16_is_the_rounded_fp32(backend: str, m: int, rng: torch.Generator) -> None:
    """Also where the result is subnormal in BF16 (below 2^-126)."""
    for kind, low, high in (("any", -12, 4), ("subnormal", -62, -58)):
        o = random_operands(m, 70, 200, rng, kind=kind, low=low, high=high)
        rounded = ops.gemm(*o)
        assert rounded.dtype == torch.bfloat16
        assert torch.equal(rounded, fp32(o).bfloat16())
    assert (rounded.float().abs() < 2.0**-126).logical_and(rounded != 0).any()


@pytest.mark.parametrize("shape", [(4, 70, 300), (40, 70, 300), (4, 256, 128), (130, 128, 256)], ids=str)
def test_strides(backend: str, shape: tuple[int, int, int], rng: torch.Generator) -> None:
    """Every layout of codes and scales gives the result of the contiguous one."""
    m, n, k = shape
    o = random_operands(m, n, k, rng)
    panel = ops.gemm(o.a, o.a_scales, o.b.t().contiguous().t(), o.b_scales, out_dtype=torch.float32)
    assert_within_bound(panel, o)

    def wide(x: torch.Tensor) -> torch.Tensor:  # padded rows
        padded = torch.zeros(x.shape[0], x.shape[1] + 3, dtype=torch.float32).to(x.dtype)
        padded[:, : x.shape[1]] = x
        return padded[:, : x.shape[1]]

    def spread(x: torch.Tensor) -> torch.Tensor:  # no stride is 1
        out = torch.zeros(x.shape[0], x.shape[1], 2, dtype=torch.float32).to(x.dtype)[:, :, 0]
        out.copy_(x)
        return out

    def turned(x: torch.Tensor) -> torch.Tensor:
        return x.t().contiguous().t()

    plain = fp32(o)
    for change in (wide, spread, turned):
        assert agree(fp32(Operands(change(o.a), change(o.a_scales), o.b, change(o.b_scales))), plain)
    for change in (wide, spread):
        assert agree(fp32(Operands(o.a, o.a_scales, change(o.b), o.b_scales)), plain)
    for change in (turned, lambda x: wide(x.t()).t()):
        assert agree(fp32(Operands(o.a, o.a_scales, change(o.b), turned(o.b_scales))), panel)
    if m > 8:
        assert agree(panel, plain)


def test_transposed_weight_needs_no_second_quantisation(backend: str, rng: torch.Generator) -> None:
    """dgrad: a weight's codes and scales, both transposed as views, are those of its transpose."""
    weight = random_operands(1, 300, 200, rng)
    a = random_operands(50, 200, 300, rng)
    o = Operands(a.a, a.a_scales, weight.b.t(), weight.b_scales.t())
    assert_within_bound(fp32(o), o)


@pytest.mark.parametrize("b_tiles", [False, True], ids=["blocks", "tiles"])
def test_rows_do_not_depend_on_their_number(backend: str, b_tiles: bool, rng: torch.Generator) -> None:
    o = random_operands(450, 200, 300, rng, b_tiles=b_tiles)
    few = fp32(o.rows(0, 8))
    for m in range(1, 8):
        assert torch.equal(fp32(o.rows(0, m)), few[:m])
        assert torch.equal(fp32(o.rows(8 - m, 8)), few[8 - m :])
    many = fp32(o)
    for start, end in ((0, 9), (3, 67), (100, 357), (440, 450)):
        assert torch.equal(fp32(o.rows(start, end)), many[start:end])


@pytest.mark.parametrize(
    "shape", [(1, 4096, 512), (8, 1000, 1024), (64, 1024, 512), (900, 300, 300)], ids=str
)
def test_same_bits_for_any_number_of_threads(
    cpu_tier: str, shape: tuple[int, int, int], rng: torch.Generator
) -> None:
    o = random_operands(*shape, rng)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(fp32(o))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("m", [8, 40])
@pytest.mark.parametrize("b_tiles", [False, True], ids=["blocks", "tiles"])
def test_nan_poisons_its_row_or_column_only(
    backend: str, m: int, b_tiles: bool, rng: torch.Generator
) -> None:
    o = random_operands(m, 140, 300, rng, b_tiles=b_tiles)
    clean = fp32(o)
    for code, i, k in ((0x7F, 3, 299), (0xFF, 7, 0)):
        o.a.view(torch.uint8)[i, k] = code
    o.b.view(torch.uint8)[139, 130] = 0xFF
    o.b.view(torch.uint8)[66, 2] = 0x7F
    expected = torch.zeros(m, 140, dtype=torch.bool)
    expected[[3, 7]] = True
    expected[:, [66, 139]] = True
    for b in (o.b, o.b.t().contiguous().t()):
        result = ops.gemm(o.a, o.a_scales, b, o.b_scales, out_dtype=torch.float32)
        assert torch.equal(result.isnan(), expected)
        if b is o.b:
            assert torch.equal(result[~expected], clean[~expected])
    assert torch.equal(ops.gemm(*o).isnan(), expected)


@pytest.mark.parametrize("m", [3, 40])
@pytest.mark.parametrize("b_tiles", [False, True], ids=["blocks", "tiles"])
def test_accumulate_adds_the_finished_product_once(
    backend: str, m: int, b_tiles: bool, rng: torch.Generator
) -> None:
    o = random_operands(m, 75, 260, rng, b_tiles=b_tiles)
    whole = torch.randn(m, 100, generator=rng)
    before = whole.clone()
    out = whole[:, 7:82]
    ops.gemm_accumulate_(out, *o)
    assert torch.equal(out, before[:, 7:82] + fp32(o))
    assert torch.equal(whole[:, :7], before[:, :7])
    assert torch.equal(whole[:, 82:], before[:, 82:])


@pytest.mark.parametrize("shape", [(0, 5, 7), (4, 0, 7), (4, 5, 0), (40, 5, 0), (0, 0, 0)], ids=str)
def test_empty(backend: str, shape: tuple[int, int, int], rng: torch.Generator) -> None:
    m, n, _ = shape
    o = random_operands(*shape, rng)
    for dtype in (torch.bfloat16, torch.float32):
        assert torch.equal(ops.gemm(*o, out_dtype=dtype), torch.zeros(m, n, dtype=dtype))
    out = torch.randn(m, n, generator=rng)
    before = out.clone()
    ops.gemm_accumulate_(out, *o)
    assert torch.equal(out, before)


def test_overflow_gives_infinity_or_nan_the_same_every_time(backend: str, rng: torch.Generator) -> None:
    o = random_operands(20, 70, 300, rng, low=60, high=70)
    result = fp32(o)
    assert not result.isfinite().all()
    assert torch.equal(result.view(torch.int32), fp32(o).view(torch.int32))


def test_the_bound_bites(rng: torch.Generator) -> None:
    """Typical mistakes exceed it: it can tell them from rounding."""
    o = random_operands(16, 256, 2048, rng, low=-2, high=2)
    assert worst(fp32(o), o) < 0.5
    in_bf16 = sum(
        (o.a[:, k : k + 128].bfloat16() @ o.b[:, k : k + 128].bfloat16().t()).float()
        * o.a_scales[:, k // 128, None]
        * o.b_scales[:, k // 128].repeat_interleave(128)
        for k in range(0, 2048, 128)
    )
    assert worst(in_bf16, o) > 1, "products rounded to BF16"
    for name, wrong in {
        "scale of the next block of K": Operands(o.a, o.a_scales, o.b, o.b_scales.roll(1, 1)),
        "scale of the next block of N": Operands(o.a, o.a_scales, o.b, o.b_scales.roll(1, 0)),
        "scale of the next row": Operands(o.a, o.a_scales.roll(1, 0), o.b, o.b_scales),
        "last code dropped": Operands(o.a[:, :-1], o.a_scales, o.b[:, :-1], o.b_scales),
        "codes shifted by one": Operands(o.a, o.a_scales, o.b.roll(1, 1), o.b_scales),
    }.items():
        assert worst(fp32(wrong), o) > 1, name
    _, absolute = exact(o)
    one_ulp_more = fp32(o) * (1 + 2.0**-14)
    assert ((one_ulp_more.double() - fp32(o)).abs() > 0.1 * bound_of(2048, absolute)).any()


def test_default_output_is_bfloat16_in_torch_ops_too(rng: torch.Generator) -> None:
    o = random_operands(3, 4, 5, rng)
    assert torch.ops.deepseek_ext.gemm(*o).dtype == torch.bfloat16


def test_inputs_are_not_trivial(rng: torch.Generator) -> None:
    codes = random_codes((200, 200), rng)
    assert len(codes.view(torch.uint8).unique()) == 254, "every code but the two NaN"
    scales = random_scales((200, tiles(2000)), rng)
    assert scales.min() < 2.0**-11.5
    assert scales.max() > 2.0**3.5
