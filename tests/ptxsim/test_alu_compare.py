"""Extremes, comparisons, selection and the approximate functions."""

import itertools
import math

import numpy as np
import pytest
from alu import (
    BF16,
    DOUBLE,
    FLOAT,
    HALF,
    Format,
    alu,
    check_codes,
    integers,
    is_nan,
    lanes,
    numbers,
    operands_of,
    pairs,
    width,
)

INTEGERS = ["u16", "s16", "u32", "s32", "u64", "s64"]

# ---------------------------------------------------------------- extremes

EXTREMES = {"f32": (FLOAT, np.uint32, 0x7FFFFFFF), "f64": (DOUBLE, np.uint64, None),
            "f16": (HALF, np.uint16, 0x7FFF), "bf16": (BF16, np.uint16, 0x7FFF)}  # fmt: skip


def extreme(fmt: Format, a: int, b: int, want_max: bool, nan_wins: bool, xorsign: bool) -> int:
    sign = (a ^ b) & fmt.sign
    if xorsign:
        a, b = a & ~fmt.sign, b & ~fmt.sign
    if is_nan(fmt, a) or is_nan(fmt, b):
        if nan_wins or (is_nan(fmt, a) and is_nan(fmt, b)):
            return -1
        chosen = b if is_nan(fmt, a) else a
    else:
        ordered = sorted([a, b], key=lambda code: (fmt.value(code), not code & fmt.sign))
        chosen = ordered[1 if want_max else 0]
    return chosen & ~fmt.sign | sign if xorsign else chosen


@pytest.mark.parametrize("ptx_type", EXTREMES)
def test_float_extremes(ptx_type):
    fmt, dtype, nan = EXTREMES[ptx_type]
    a, b = operands_of(fmt, dtype, 25, 2)
    rows = list(zip(a.tolist(), b.tolist(), strict=True))
    variants = [""] if ptx_type == "f64" else ["", ".NaN", ".xorsign.abs", ".NaN.xorsign.abs"]
    for op, variant in itertools.product(("min", "max"), variants):
        expected = [extreme(fmt, x, y, op == "max", "NaN" in variant, "xor" in variant) for x, y in rows]
        got = alu(f"{op}{variant}.{ptx_type} d, a, b;", dtype, a=a, b=b)
        check_codes(fmt, got, expected, [a, b], nan)


# ---------------------------------------------------------------- comparison

ORDERED = {
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
}
UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


@pytest.mark.parametrize("ptx_type", INTEGERS)
def test_integer_comparison(ptx_type):
    rng = np.random.default_rng(30)
    a, b = pairs(integers(width(ptx_type), rng), rng)
    x, y = numbers(a, ptx_type), numbers(b, ptx_type)
    names = dict(zip(ORDERED, ORDERED, strict=True)) | (UNSIGNED if ptx_type[0] == "u" else {})
    for name, meaning in names.items():
        expected = [ORDERED[meaning](p, q) for p, q in zip(x, y, strict=True)]
        got = alu(f"setp.{name}.{ptx_type} d, a, b;", bool, a=a, b=b)
        np.testing.assert_array_equal(got, expected, err_msg=name)


@pytest.mark.parametrize("ptx_type", EXTREMES)
def test_float_comparison(ptx_type):
    fmt, dtype, _ = EXTREMES[ptx_type]
    a, b = operands_of(fmt, dtype, 31, 2)
    rows = [(fmt.value(x), fmt.value(y)) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    unordered = np.array([any(isinstance(v, float) and math.isnan(v) for v in row) for row in rows])
    assert unordered.any()
    for name, compare in ORDERED.items():
        holds = np.array([compare(x, y) for x, y in rows])
        got = alu(f"setp.{name}.{ptx_type} d, a, b;", bool, a=a, b=b)
        np.testing.assert_array_equal(got, holds & ~unordered, err_msg=name)
        got = alu(f"setp.{name}u.{ptx_type} d, a, b;", bool, a=a, b=b)
        np.testing.assert_array_equal(got, holds | unordered, err_msg=name + "u")
    np.testing.assert_array_equal(alu(f"setp.num.{ptx_type} d, a, b;", bool, a=a, b=b), ~unordered)
    np.testing.assert_array_equal(alu(f"setp.nan.{ptx_type} d, a, b;", bool, a=a, b=b), unordered)


@pytest.mark.parametrize("negated", [False, True])
def test_comparison_combines_with_a_predicate(negated):
    a = np.array([1, 1, 2, 2], np.uint32)
    c = np.array([False, True, False, True])
    b = np.full(4, 1, np.uint32)
    other = ~c if negated else c
    equal = a == b
    combine = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
    for op, function in combine.items():
        text = f"setp.eq.{op}.u32 p|q, a, b, {'!' if negated else ''}c;"
        got = lanes(text, {"p": bool, "q": bool}, a=a, b=b, c=c)
        np.testing.assert_array_equal(got["p"], function(equal, other), err_msg=op)
        np.testing.assert_array_equal(got["q"], function(~equal, other), err_msg=op)
    got = lanes("setp.eq.u32 p|q, a, b;", {"p": bool, "q": bool}, a=a, b=b)
    np.testing.assert_array_equal(got["p"], equal)
    np.testing.assert_array_equal(got["q"], ~equal)


def test_selection_and_set():
    a, b = np.array([1, 2, 3], np.uint32), np.array([1, 5, 0], np.uint32)
    c = np.array([True, False, True])
    np.testing.assert_array_equal(alu("selp.b32 d, a, b, c;", np.uint32, a=a, b=b, c=c), np.where(c, a, b))
    np.testing.assert_array_equal(alu("selp.b32 d, a, b, !c;", np.uint32, a=a, b=b, c=c), np.where(c, b, a))
    got = alu("set.lt.u32.s32 d, a, b;", np.uint32, a=a, b=b)
    np.testing.assert_array_equal(got, np.where(a < b, 0xFFFFFFFF, 0))
    x, y = np.array([1, np.nan, -1], np.float32), np.array([1, 1, 2], np.float32)
    got = alu("set.neu.f32.f32 d, a, b;", np.uint32, a=x.view(np.uint32), b=y.view(np.uint32))
    np.testing.assert_array_equal(got.view(np.float32), [0, 1, 1])
    halves = np.array([1, np.nan], np.float16).view(np.uint32)
    ones = np.array([1, 1], np.float16).view(np.uint32)
    assert alu("set.equ.f16x2.f16x2 d, a, b;", np.uint32, a=halves, b=ones)[0] == 0x3C003C00
    assert alu("set.eq.u32.f16x2 d, a, b;", np.uint32, a=halves, b=ones)[0] == 0x0000FFFF


def test_sign_and_class():
    f = np.float32
    values = np.array([0, -0.0, 1e-40, -1e-40, 1, -3, np.inf, -np.inf, np.nan], f)
    a = values.view(np.uint32)
    np.testing.assert_array_equal(alu("abs.f32 d, a;", np.uint32, a=a), a & 0x7FFFFFFF)
    np.testing.assert_array_equal(alu("neg.f32 d, a;", np.uint32, a=a), a ^ 0x80000000)
    two = np.full(9, 2, f).view(np.uint32)
    np.testing.assert_array_equal(alu("copysign.f32 d, a, b;", np.uint32, a=a, b=two), two | a & 0x80000000)
    classes = {
        "finite": np.isfinite(values),
        "infinite": np.isinf(values),
        "number": ~np.isnan(values),
        "notanumber": np.isnan(values),
        "normal": np.isfinite(values) & (np.abs(values) >= f(2**-126)),
        "subnormal": (np.abs(values) < f(2**-126)) & (values != 0),
    }
    for name, expected in classes.items():
        np.testing.assert_array_equal(alu(f"testp.{name}.f32 d, a;", bool, a=a), expected, err_msg=name)


# ---------------------------------------------------------------- approximate functions


FUNCTIONS = {
    "ex2": (np.exp2, -148, 127),
    "lg2": (np.log2, 1e-40, 1e38),
    "sin": (np.sin, -100, 100),
    "cos": (np.cos, -100, 100),
    "tanh": (np.tanh, -12, 12),
    "rcp": (lambda x: 1 / x, 1e-30, 1e30),
    "sqrt": (np.sqrt, 0, 1e38),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 1e-30, 1e30),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_approximate_functions(name):
    function, low, high = FUNCTIONS[name]
    x = np.random.default_rng(40).uniform(low, high, 4000).astype(np.float32)
    got = alu(f"{name}.approx.f32 d, a;", np.uint32, a=x.view(np.uint32)).view(np.float32)
    expected = function(x.astype(np.float64))
    ulp = np.spacing(np.maximum(np.abs(expected), 2**-126).astype(np.float32)).astype(np.float64)
    assert (np.abs(got - expected) <= 0.501 * ulp).all()


def test_approximate_functions_at_special_values():
    f = np.float32
    a = np.array([0, -0.0, np.inf, -np.inf, np.nan], f).view(np.uint32)
    expected = {
        "ex2": [1, 1, np.inf, 0, np.nan],
        "lg2": [-np.inf, -np.inf, np.inf, np.nan, np.nan],
        "rcp": [np.inf, -np.inf, 0, -0.0, np.nan],
        "rsqrt": [np.inf, -np.inf, 0, np.nan, np.nan],
        "sqrt": [0, -0.0, np.inf, np.nan, np.nan],
        "tanh": [0, -0.0, 1, -1, np.nan],
    }
    for name, values in expected.items():
        got = alu(f"{name}.approx.f32 d, a;", np.uint32, a=a).view(f)
        np.testing.assert_array_equal(got, np.array(values, f), err_msg=name)


def test_approximate_flushing():
    f = np.float32
    a = np.array([-130, 1e-40], f).view(np.uint32)
    assert alu("ex2.approx.f32 d, a;", np.uint32, a=a).view(f)[0] == f(2**-130)
    assert alu("ex2.approx.ftz.f32 d, a;", np.uint32, a=a).view(f)[0] == 0
    assert alu("rcp.approx.ftz.f32 d, a;", np.uint32, a=a).view(f)[1] == np.inf
    assert alu("lg2.approx.f32 d, a;", np.uint32, a=a).view(f)[1] == pytest.approx(math.log2(f(1e-40)))


def test_approximate_doubles_and_halves():
    x = np.random.default_rng(41).uniform(0.001, 1000, 500)
    upper = (x.view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)
    for text, expected in {"rcp.approx.ftz.f64": 1 / upper, "rsqrt.approx.f64": 1 / np.sqrt(upper)}.items():
        got = alu(f"{text} d, a;", np.uint64, a=x.view(np.uint64))
        assert not (got & np.uint64(0xFFFFFFFF)).any()
        np.testing.assert_allclose(got.view(np.float64), expected, rtol=2**-19)
    halves = np.arange(0x4000, dtype=np.uint16)
    got = alu("ex2.approx.f16 d, a;", np.uint16, a=halves).view(np.float16)
    np.testing.assert_array_equal(got, np.exp2(halves.view(np.float16).astype(np.float64)).astype(np.float16))
    got = alu("tanh.approx.f16x2 d, a;", np.uint32, a=halves.view(np.uint32)).view(np.float16)
    np.testing.assert_array_equal(got, np.tanh(halves.view(np.float16).astype(np.float64)).astype(np.float16))
