"""Floating-point arithmetic against exact rational arithmetic: every result is rounded once."""

import math
from fractions import Fraction

import numpy as np
import pytest
from alu import BF16, DOUBLE, FLOAT, HALF, Format, alu, check_codes, operands_of

MODES = ["rn", "rz", "rm", "rp"]
FORMATS = {"f32": (FLOAT, np.uint32), "f64": (DOUBLE, np.uint64)}


def exact_sum(fmt: Format, a: int, b: int, mode: str, product_sign: bool | None = None) -> int:
    """a + b for codes; zeros as IEEE says."""
    x, y = fmt.value(a), fmt.value(b)
    if isinstance(x, float) or isinstance(y, float):
        return special(
            fmt, float(x) if isinstance(x, float) else 0.0, float(y) if isinstance(y, float) else 0.0
        )
    if x == 0 and y == 0 and (a ^ b) & fmt.sign == 0:
        return a & fmt.sign
    return fmt.round(x + y, mode, negative_zero=mode == "rm")


def special(fmt: Format, x: float, y: float) -> int:
    total = x + y
    if math.isnan(total):
        return -1
    return fmt.infinity | (fmt.sign if total < 0 else 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ptx_type", FORMATS)
def test_float_sums_round_once(ptx_type, mode):
    fmt, dtype = FORMATS[ptx_type]
    a, b = operands_of(fmt, dtype, 20, 2)
    expected = [exact_sum(fmt, x, y, mode) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    nan = 0x7FFFFFFF if ptx_type == "f32" else None
    check_codes(fmt, alu(f"add.{mode}.{ptx_type} d, a, b;", dtype, a=a, b=b), expected, [a, b], nan)
    negated = b ^ dtype(fmt.sign)
    check_codes(fmt, alu(f"sub.{mode}.{ptx_type} d, a, b;", dtype, a=a, b=negated), expected, [a, b], nan)
    if mode == "rn":
        check_codes(fmt, alu(f"add.{ptx_type} d, a, b;", dtype, a=a, b=b), expected, [a, b], nan)


def exact_product(fmt: Format, a: int, b: int, c: int | None, mode: str) -> int:
    """a * b + c for codes (c None: a product), rounded once."""
    x, y = fmt.value(a), fmt.value(b)
    z = Fraction(0) if c is None else fmt.value(c)
    sign = (a ^ b) & fmt.sign
    if any(isinstance(v, float) for v in (x, y, z)):
        product = float(x) * float(y) if isinstance(x, float) or isinstance(y, float) else 0.0
        if isinstance(x, float) and not isinstance(y, float) and not math.isnan(x):
            product = math.nan if y == 0 else math.copysign(math.inf, -1 if sign else 1)
        if isinstance(y, float) and not isinstance(x, float) and not math.isnan(y):
            product = math.nan if x == 0 else math.copysign(math.inf, -1 if sign else 1)
        return special(fmt, product, z if isinstance(z, float) else 0.0)
    if x * y == 0 and z == 0:
        if c is None or sign == c & fmt.sign:
            return sign
        return fmt.sign if mode == "rm" else 0
    negative_zero = mode == "rm" if c is not None else bool(sign)
    return fmt.round(x * y + z, mode, negative_zero)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ptx_type", FORMATS)
def test_float_products_round_once(ptx_type, mode):
    fmt, dtype = FORMATS[ptx_type]
    nan = 0x7FFFFFFF if ptx_type == "f32" else None
    a, b, c = operands_of(fmt, dtype, 21, 3)
    rows = list(zip(a.tolist(), b.tolist(), c.tolist(), strict=True))
    expected = [exact_product(fmt, x, y, None, mode) for x, y, _ in rows]
    check_codes(fmt, alu(f"mul.{mode}.{ptx_type} d, a, b;", dtype, a=a, b=b), expected, [a, b], nan)
    expected = [exact_product(fmt, x, y, z, mode) for x, y, z in rows]
    got = alu(f"fma.{mode}.{ptx_type} d, a, b, c;", dtype, a=a, b=b, c=c)
    check_codes(fmt, got, expected, [a, b, c], nan)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ptx_type", FORMATS)
def test_quotients_and_roots_round_once(ptx_type, mode):
    fmt, dtype = FORMATS[ptx_type]
    a, b = operands_of(fmt, dtype, 22, 2)
    finite = np.array([not isinstance(fmt.value(int(x)), float) and not isinstance(fmt.value(int(y)), float)
                       and fmt.value(int(y)) != 0 for x, y in zip(a, b, strict=True)])  # fmt: skip
    a, b = a[finite], b[finite]
    expected = [fmt.round(fmt.value(x) / fmt.value(y), mode, bool((x ^ y) & fmt.sign))
                for x, y in zip(a.tolist(), b.tolist(), strict=True)]  # fmt: skip
    check_codes(fmt, alu(f"div.{mode}.{ptx_type} d, a, b;", dtype, a=a, b=b), expected, [a, b], None)
    inverse = [fmt.round(1 / fmt.value(y), mode) for y in b.tolist()]
    check_codes(fmt, alu(f"rcp.{mode}.{ptx_type} d, b;", dtype, b=b), inverse, [b], None)
    positive = a & dtype(fmt.sign - 1)
    roots = [exact_root(fmt, fmt.value(x), mode) for x in positive.tolist()]
    check_codes(fmt, alu(f"sqrt.{mode}.{ptx_type} d, a;", dtype, a=positive), roots, [positive], None)


def exact_root(fmt: Format, x: Fraction, mode: str) -> int:
    """The rounded root: the integer root of x scaled by 2^2k, with a sticky digit if it is inexact."""
    scale = 2 ** (2 * (fmt.bias + 2 * fmt.fraction_bits))
    scaled = x * scale * scale
    assert scaled.denominator == 1
    root = math.isqrt(scaled.numerator)
    sticky = root * root != scaled.numerator
    return fmt.round(Fraction(2 * root + sticky, 2 * scale), mode)


def test_division_specials():
    f = np.float32
    a = np.array([1, -1, 0, np.inf, np.inf, np.nan, 1, -2], f).view(np.uint32)
    b = np.array([0, 0, 0, np.inf, 2, 1, np.inf, -np.inf], f).view(np.uint32)
    expected = np.array([np.inf, -np.inf, np.nan, np.nan, np.inf, np.nan, 0, 0], f)
    for op in ("div.rn", "div.full", "div.approx"):
        got = alu(f"{op}.f32 d, a, b;", np.uint32, a=a, b=b)
        np.testing.assert_array_equal(got.view(f), expected, err_msg=op)
        assert (got[np.isnan(expected)] == 0x7FFFFFFF).all()


def test_approximate_division_by_a_large_number_is_zero():
    f = np.float32
    a = np.array([2**120, -(2**120), np.inf, 2**120], f).view(np.uint32)
    b = np.array([1.5 * 2**126, 1.5 * 2**126, 1.5 * 2**126, 2**126], f).view(np.uint32)
    got = alu("div.approx.f32 d, a, b;", np.uint32, a=a, b=b).view(f)
    np.testing.assert_array_equal(got, np.array([0, -0.0, np.nan, 2**-6], f))
    assert np.signbit(got[1])


def test_subnormals_are_flushed_only_with_ftz():
    f = np.float32
    tiny = np.array([1e-40, -1e-40, 2**-126, 3e-39], f)
    a = tiny.view(np.uint32)
    one, half = (np.full(4, v, f).view(np.uint32) for v in (1, 0.5))
    keep = alu("mul.f32 d, a, b;", np.uint32, a=a, b=half).view(f)
    np.testing.assert_array_equal(keep, tiny * f(0.5))
    flush = alu("mul.ftz.f32 d, a, b;", np.uint32, a=a, b=half).view(f)
    np.testing.assert_array_equal(flush.view(np.uint32), [0, 1 << 31, 0, 0])  # 2^-126 / 2 is subnormal
    got = alu("add.ftz.f32 d, a, a;", np.uint32, a=a).view(f)
    np.testing.assert_array_equal(got.view(np.uint32), [0, 1 << 31, f(2**-125).view(np.uint32), 0])
    got = alu("fma.rn.ftz.f32 d, a, b, a;", np.uint32, a=a, b=one).view(f)
    np.testing.assert_array_equal(got, [0, -0.0, f(2**-125), 0])
    np.testing.assert_array_equal(alu("abs.ftz.f32 d, a;", np.uint32, a=a).view(f), [0, 0, f(2**-126), 0])
    np.testing.assert_array_equal(alu("neg.f32 d, a;", np.uint32, a=a).view(f), -tiny)
    assert alu("setp.eq.ftz.f32 d, a, 0f00000000;", bool, a=a).tolist() == [True, True, False, True]
    assert not alu("setp.eq.f32 d, a, 0f00000000;", bool, a=a).any()


def test_saturation():
    f = np.float32
    a = np.array([-1, -0.0, 0.25, 1, 7, np.inf, -np.inf, np.nan], f).view(np.uint32)
    zero = np.full(8, -0.0, f).view(np.uint32)
    expected = np.array([0, 0, 0.25, 1, 1, 1, 0, 0], f).view(np.uint32)
    np.testing.assert_array_equal(alu("add.sat.f32 d, a, b;", np.uint32, a=a, b=zero), expected)
    one = np.full(8, 1, f).view(np.uint32)
    np.testing.assert_array_equal(alu("fma.rm.sat.f32 d, a, b, c;", np.uint32, a=a, b=one, c=zero), expected)
    np.testing.assert_array_equal(alu("cvt.sat.f32.f32 d, a;", np.uint32, a=a), expected)


# ---------------------------------------------------------------- halves

HALVES = {"f16": HALF, "bf16": BF16}


@pytest.mark.parametrize("ptx_type", HALVES)
def test_halves_round_once(ptx_type):
    fmt = HALVES[ptx_type]
    a, b, c = operands_of(fmt, np.uint16, 23, 3, 900)
    rows = list(zip(a.tolist(), b.tolist(), c.tolist(), strict=True))
    sums = [exact_sum(fmt, x, y, "rn") for x, y, _ in rows]
    products = [exact_product(fmt, x, y, None, "rn") for x, y, _ in rows]
    fused = [exact_product(fmt, x, y, z, "rn") for x, y, z in rows]
    check_codes(fmt, alu(f"add.{ptx_type} d, a, b;", np.uint16, a=a, b=b), sums, [a, b], 0x7FFF)
    check_codes(fmt, alu(f"sub.rn.{ptx_type} d, a, b;", np.uint16, a=a, b=b ^ 0x8000), sums, [a, b], 0x7FFF)
    check_codes(fmt, alu(f"mul.{ptx_type} d, a, b;", np.uint16, a=a, b=b), products, [a, b], 0x7FFF)
    got = alu(f"fma.rn.{ptx_type} d, a, b, c;", np.uint16, a=a, b=b, c=c)
    check_codes(fmt, got, fused, [a, b, c], 0x7FFF)


@pytest.mark.parametrize("ptx_type", HALVES)
def test_fma_of_halves_is_not_rounded_through_a_double(ptx_type):
    """The product is a tie; the addend, too small for a double's 53 bits beside it, decides."""
    fmt = HALVES[ptx_type]
    one = fmt.bias << fmt.fraction_bits
    # (1 + 2^-k)(1 + 2^-k') has a bit just below the last place: found by search, as exact fractions.
    candidates = []
    tiny = 1  # the smallest subnormal
    for x in range(one, one + (1 << fmt.fraction_bits)):
        for y in (one + 1, one + 2, one + 4, one + (1 << (fmt.fraction_bits - 1))):
            product = fmt.value(x) * fmt.value(y)
            down = fmt.floor_code(product)
            if 2 * (product - fmt.value(down)) == fmt.value(down + 1) - fmt.value(down):
                candidates.append((x, y))
    assert candidates
    shift = (
        0 if fmt is BF16 else 14 << fmt.fraction_bits
    )  # f16: move the product up so that the gap passes 53 bits
    rows = [(x + shift, y, z) for x, y in candidates for z in (tiny, tiny | fmt.sign)]
    a, b, c = (np.array(column, np.uint16) for column in zip(*rows, strict=True))
    expected = [exact_product(fmt, x, y, z, "rn") for x, y, z in rows]
    got = alu(f"fma.rn.{ptx_type} d, a, b, c;", np.uint16, a=a, b=b, c=c)
    check_codes(fmt, got, expected, [a, b, c], None)
    ties = [fmt.round(fmt.value(x) * fmt.value(y), "rn") for x, y, _ in rows]
    assert any(t != e for t, e in zip(ties, expected, strict=True)), "no case where the addend decides"


@pytest.mark.parametrize("ptx_type", HALVES)
def test_packed_halves_are_two_halves(ptx_type):
    rng = np.random.default_rng(24)
    a, b, c = (rng.integers(0, 2**32, 400, dtype=np.uint64).astype(np.uint32) for _ in range(3))

    def both(text: str, **operands: np.ndarray) -> np.ndarray:
        low = alu(text, np.uint16, **{k: v.astype(np.uint16) for k, v in operands.items()})
        high = alu(text, np.uint16, **{k: (v >> 16).astype(np.uint16) for k, v in operands.items()})
        return low.astype(np.uint32) | high.astype(np.uint32) << 16

    for text in (
        "add.T d, a, b;",
        "sub.T d, a, b;",
        "mul.T d, a, b;",
        "min.T d, a, b;",
        "max.NaN.T d, a, b;",
    ):
        packed = alu(text.replace("T", ptx_type + "x2").replace("NaN", "NaN"), np.uint32, a=a, b=b)
        np.testing.assert_array_equal(
            packed, both(text.replace(".T", "." + ptx_type), a=a, b=b), err_msg=text
        )
    text = "fma.rn.T d, a, b, c;"
    packed = alu(text.replace("T", ptx_type + "x2"), np.uint32, a=a, b=b, c=c)
    np.testing.assert_array_equal(packed, both(text.replace("T", ptx_type), a=a, b=b, c=c))
    for text in ("neg.T d, a;", "abs.T d, a;"):
        packed = alu(text.replace("T", ptx_type + "x2"), np.uint32, a=a)
        np.testing.assert_array_equal(packed, both(text.replace("T", ptx_type), a=a))


def test_half_qualifiers():
    half = np.array([-2, -0.0, 0.5, 3, np.nan, 6e-8, -6e-8], np.float16)
    a = half.view(np.uint16)
    one, zero = np.full(7, 0x3C00, np.uint16), np.full(7, 0x8000, np.uint16)
    got = alu("fma.rn.relu.f16 d, a, b, c;", np.uint16, a=a, b=one, c=zero)
    np.testing.assert_array_equal(got, [0, 0, 0x3800, 0x4200, 0x7FFF, a[5], 0])
    got = alu("add.sat.f16 d, a, c;", np.uint16, a=a, c=zero)
    np.testing.assert_array_equal(got, [0, 0, 0x3800, 0x3C00, 0, a[5], 0])
    got = alu("mul.ftz.f16 d, a, b;", np.uint16, a=a, b=one)
    np.testing.assert_array_equal(got, [a[0], a[1], a[2], a[3], 0x7FFF, 0, 0x8000])
