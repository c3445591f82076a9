"""cvt: every half, every 8-bit code, and floats around every rounding boundary, against exact oracles."""

import itertools
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from alu import BF16, DOUBLE, E4M3, E5M2, FLOAT, HALF, TF32, Format, alu, check_codes, floats_of_interest

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")

HALF_CODES = np.arange(65536, dtype=np.uint16)
INTEGERS = [f"{sign}{bits}" for sign in "us" for bits in (8, 16, 32, 64)]
FLOATS = {
    "f16": (HALF, np.uint16),
    "bf16": (BF16, np.uint16),
    "f32": (FLOAT, np.uint32),
    "f64": (DOUBLE, np.uint64),
}
REGISTERS = {8: np.uint16, 16: np.uint16, 32: np.uint32, 64: np.uint64}


def round_codes(fmt: Format, values: np.ndarray, mode: str, saturate: bool = False) -> np.ndarray:
    """Codes of float64 values in a small format: their neighbours are looked up among all its values."""
    table = np.array([float(fmt.value(code)) for code in range(fmt.largest + 1)])
    magnitude = np.abs(values)
    sign = np.where(np.signbit(values), fmt.sign, 0)
    down = np.clip(np.searchsorted(table, magnitude, side="right") - 1, 0, fmt.largest)
    beyond = table[-1] + (table[-1] - table[-2])
    above = np.append(table[1:], beyond)[down]
    low, high = (
        magnitude - table[down],
        above - magnitude,
    )  # exact: neighbours within a factor of two, or small
    negative = sign != 0
    up = {
        "rn": (low > high) | ((low == high) & (down % 2 == 1)),
        "rna": low >= high,
        "rz": np.zeros(values.shape, bool),
        "rm": negative & (low > 0),
        "rp": ~negative & (low > 0),
    }[mode]
    code = down + (up & (low > 0))
    infinite = np.isinf(values)
    code = np.where(infinite, fmt.largest + 1, code)
    if saturate:
        code = np.minimum(code, fmt.largest)
    return np.where(np.isnan(values), -1, sign | code)


def boundary_floats(fmt: Format, stride: int = 1) -> np.ndarray:
    """FP32 at every `stride`-th value of a small format, halfway to the next, and an ulp to either side."""
    values = [float(fmt.value(code)) for code in range(0, fmt.largest + 1, stride)]
    values += [float(fmt.value(fmt.largest)) * f for f in (1.01, 1.5, 2, 1e3)]
    table = np.array(values)
    middle = (table[:-1] + table[1:]) / 2
    with np.errstate(over="ignore"):
        points = np.concatenate([table, middle, [np.inf, 3.4e38, 1e-45]]).astype(np.float32)
    points = np.concatenate(
        [points, np.nextafter(points, np.float32(0)), np.nextafter(points, np.float32(np.inf))]
    )
    return np.concatenate([points, -points, [np.float32(np.nan)]])


def compare(got: np.ndarray, expected: np.ndarray, inputs: np.ndarray, nan: int) -> None:
    want = np.where(expected == -1, nan, expected)
    wrong = np.flatnonzero(got != want)
    first = [(inputs[i], hex(got[i]), hex(want[i])) for i in wrong[:5]]
    assert not wrong.size, f"{wrong.size} wrong, first (input, got, expected): {first}"


# ---------------------------------------------------------------- exhaustive, exact


def test_every_half_widens_exactly():
    expected = HALF_CODES.view(np.float16).astype(np.float32)
    got = alu("cvt.f32.f16 d, a;", np.uint32, a=HALF_CODES)
    np.testing.assert_array_equal(got.view(np.float32), expected)
    assert (got[np.isnan(expected)] == 0x7FFFFFFF).all()
    np.testing.assert_array_equal(
        alu("cvt.f64.f16 d, a;", np.uint64, a=HALF_CODES).view(np.float64), expected.astype(np.float64)
    )


def test_every_bf16_widens_exactly():
    expected = HALF_CODES.view(ml_dtypes.bfloat16).astype(np.float32)
    got = alu("cvt.f32.bf16 d, a;", np.uint32, a=HALF_CODES)
    np.testing.assert_array_equal(got.view(np.float32), expected)
    np.testing.assert_array_equal(
        got[~np.isnan(expected)], (HALF_CODES.astype(np.uint32) << 16)[~np.isnan(expected)]
    )


@pytest.mark.parametrize("ptx_type", ["e4m3", "e5m2"])
def test_every_pair_of_bytes_widens_exactly(ptx_type):
    dtype = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}[ptx_type]
    got = alu(f"cvt.rn.f16x2.{ptx_type}x2 d, a;", np.uint32, a=HALF_CODES).view(np.float16)
    expected = HALF_CODES.view(dtype).astype(np.float16)
    np.testing.assert_array_equal(got, expected)
    assert (got.view(np.uint16)[np.isnan(expected)] == 0x7FFF).all()
    relu = alu(f"cvt.rn.relu.f16x2.{ptx_type}x2 d, a;", np.uint32, a=HALF_CODES).view(np.float16)
    negative = np.signbit(expected) & ~np.isnan(expected)
    np.testing.assert_array_equal(relu.view(np.uint16), np.where(negative, 0, got.view(np.uint16)))


@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
def test_every_half_rounds_to_an_integer(mode):
    function = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[mode]
    values = HALF_CODES.view(np.float16)
    got = alu(f"cvt.{mode}.f16.f16 d, a;", np.uint16, a=HALF_CODES).view(np.float16)
    np.testing.assert_array_equal(got, function(values))
    number = ~np.isnan(values)
    np.testing.assert_array_equal(np.signbit(got)[number], np.signbit(values)[number])
    with np.errstate(invalid="ignore"):
        whole = np.clip(np.nan_to_num(function(values.astype(np.float64)), nan=0), -(2**31), 2**31 - 1)
    got = alu(f"cvt.{mode}.s32.f16 d, a;", np.uint32, a=HALF_CODES).view(np.int32)
    np.testing.assert_array_equal(got, whole.astype(np.int32))


# ---------------------------------------------------------------- FP32 to small formats


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("ptx_type", ["f16", "bf16"])
def test_float_to_half(ptx_type, mode):
    fmt = FLOATS[ptx_type][0]
    x = boundary_floats(fmt, 3)
    expected = round_codes(fmt, x.astype(np.float64), mode)
    compare(alu(f"cvt.{mode}.{ptx_type}.f32 d, a;", np.uint16, a=x.view(np.uint32)), expected, x, 0x7FFF)
    wide = x.astype(np.float64)
    compare(alu(f"cvt.{mode}.{ptx_type}.f64 d, a;", np.uint16, a=wide.view(np.uint64)), expected, x, 0x7FFF)


@pytest.mark.parametrize("ptx_type", ["f16", "bf16"])
def test_nearest_half_agrees_with_numpy(ptx_type):
    dtype = {"f16": np.float16, "bf16": ml_dtypes.bfloat16}[ptx_type]
    bits = np.random.default_rng(1).integers(0, 2**32, 100_000, dtype=np.uint64).astype(np.uint32)
    x = bits.view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(dtype)
    got = alu(f"cvt.rn.{ptx_type}.f32 d, a;", np.uint16, a=bits)
    np.testing.assert_array_equal(got.view(dtype).astype(np.float32), expected.astype(np.float32))
    pair = alu(f"cvt.rn.{ptx_type}x2.f32 d, a, b;", np.uint32, a=bits, b=bits[::-1])
    np.testing.assert_array_equal(pair >> 16, got)  # the first operand is the upper half
    np.testing.assert_array_equal(pair & 0xFFFF, got[::-1])


@pytest.mark.parametrize("ptx_type", ["f16", "bf16"])
def test_half_saturation_and_relu(ptx_type):
    fmt = FLOATS[ptx_type][0]
    x = boundary_floats(fmt, 64)
    bits = x.view(np.uint32)
    for mode in ("rn", "rz"):
        expected = round_codes(fmt, x.astype(np.float64), mode, saturate=True)
        compare(alu(f"cvt.{mode}.satfinite.{ptx_type}.f32 d, a;", np.uint16, a=bits), expected, x, 0x7FFF)
        plain = round_codes(fmt, x.astype(np.float64), mode)
        relu = np.where((plain != -1) & (plain & fmt.sign != 0), 0, plain)
        compare(alu(f"cvt.{mode}.relu.{ptx_type}.f32 d, a;", np.uint16, a=bits), relu, x, 0x7FFF)


@pytest.mark.parametrize("ptx_type", ["e4m3", "e5m2"])
def test_float_to_bytes(ptx_type):
    fmt = {"e4m3": E4M3, "e5m2": E5M2}[ptx_type]
    x = boundary_floats(fmt)
    expected = round_codes(fmt, x.astype(np.float64), "rn", saturate=True)
    expected = np.where(expected == -1, 0x7F, expected)
    zero = np.zeros(x.size, np.uint32)
    bits = x.view(np.uint32)
    upper = alu(f"cvt.rn.satfinite.{ptx_type}x2.f32 d, a, b;", np.uint16, a=bits, b=zero)
    compare(upper >> 8, expected, x, 0x7F)
    lower = alu(f"cvt.rn.satfinite.{ptx_type}x2.f32 d, b, a;", np.uint16, a=bits, b=zero)
    compare(lower, expected, x, 0x7F)
    dtype = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}[ptx_type]
    inside = np.abs(x) <= float(fmt.value(fmt.largest))
    np.testing.assert_array_equal(lower[inside], x[inside].astype(dtype).view(np.uint8))
    relu = alu(f"cvt.rn.satfinite.relu.{ptx_type}x2.f32 d, b, a;", np.uint16, a=bits, b=zero)
    np.testing.assert_array_equal(relu, np.where(np.signbit(x) & ~np.isnan(x), 0, lower))


@pytest.mark.parametrize("ptx_type", ["e4m3", "e5m2"])
def test_every_half_to_bytes(ptx_type):
    fmt = {"e4m3": E4M3, "e5m2": E5M2}[ptx_type]
    values = HALF_CODES.view(np.float16).astype(np.float64)
    expected = round_codes(fmt, values, "rn", saturate=True)
    pairs = HALF_CODES.astype(np.uint32) | HALF_CODES[::-1].astype(np.uint32) << 16
    got = alu(f"cvt.rn.satfinite.{ptx_type}x2.f16x2 d, a;", np.uint16, a=pairs)
    compare(got & 0xFF, expected, values, 0x7F)
    compare(got >> 8, expected[::-1], values[::-1], 0x7F)


@pytest.mark.parametrize("mode", ["rna", "rn", "rz"])
def test_float_to_tf32(mode):
    rng = np.random.default_rng(2)
    codes = floats_of_interest(FLOAT, 3000, rng).astype(np.uint32)
    halfway = codes & 0xFFFFE000 | 0x1000
    bits = np.concatenate([codes, halfway, halfway + 1, halfway - 1])
    bits = bits[~np.isinf(bits.view(np.float32)) & ~np.isnan(bits.view(np.float32))]
    expected = [TF32.round(FLOAT.value(int(b)), mode, bool(b >> 31)) << 13 for b in bits]
    got = alu(f"cvt.{mode}.tf32.f32 d, a;", np.uint32, a=bits)
    np.testing.assert_array_equal(got, np.array(expected, np.uint64).astype(np.uint32))


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_double_to_float(mode):
    rng = np.random.default_rng(3)
    codes = floats_of_interest(DOUBLE, 600, rng)
    floats = floats_of_interest(FLOAT, 600, rng).astype(np.uint32).view(np.float32).astype(np.float64)
    halfway = (floats.view(np.uint64) & ~np.uint64(0x1FFFFFFF)) | np.uint64(0x10000000)
    bits = np.concatenate([codes, halfway, halfway + np.uint64(1), halfway - np.uint64(1)])
    values = [DOUBLE.value(int(b)) for b in bits]
    finite = np.array([not isinstance(v, float) for v in values])
    bits = bits[finite]
    exact = [v for v in values if not isinstance(v, float)]
    expected = [FLOAT.round(v, mode, bool(int(b) >> 63)) for v, b in zip(exact, bits, strict=True)]
    check_codes(FLOAT, alu(f"cvt.{mode}.f32.f64 d, a;", np.uint32, a=bits), expected, [bits], None)
    specials = np.array([np.inf, -np.inf, np.nan]).view(np.uint64)
    got = alu(f"cvt.{mode}.f32.f64 d, a;", np.uint32, a=specials)
    assert got.tolist() == [0x7F800000, 0xFF800000, 0x7FFFFFFF]


def test_float_to_double_is_exact():
    bits = floats_of_interest(FLOAT, 500, np.random.default_rng(4)).astype(np.uint32)
    got = alu("cvt.f64.f32 d, a;", np.uint64, a=bits).view(np.float64)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(got, bits.view(np.float32).astype(np.float64))


# ---------------------------------------------------------------- integers


def integer_edges(ptx_type: str, rng: np.random.Generator) -> np.ndarray:
    """Bit patterns of the type, in its register, with rubbish above an 8-bit value."""
    bits = int(ptx_type[1:])
    top = 1 << (bits - 1)
    values = [0, 1, 2, top - 1, top, top + 1, 2 * top - 1, 2 * top - 2, 3 * top // 2, 0x7F, 0x80, 0xFF]
    values += [(1 << k) + d for k in range(8, bits) for d in (-1, 0, 1)]
    values += rng.integers(0, 2**63, 60).tolist()
    if bits == 8:
        values = [v & 0xFF | 0xAB00 for v in values]
    return np.array([v % (1 << max(bits, 16)) for v in values], np.uint64).astype(REGISTERS[bits])


def integer_values(cells: np.ndarray, ptx_type: str) -> list[int]:
    bits = int(ptx_type[1:])
    values = [int(c) & ((1 << bits) - 1) for c in cells]
    return [v - (1 << bits) if ptx_type[0] == "s" and v >> (bits - 1) else v for v in values]


def register(value: int, ptx_type: str) -> int:
    """The register's content after a value of the type is written to it: extended by the type's sign."""
    bits = int(ptx_type[1:])
    value &= (1 << bits) - 1
    if ptx_type[0] == "s" and value >> (bits - 1):
        value -= 1 << bits
    return value & ((1 << max(bits, 16)) - 1)


def clamp(value: int, ptx_type: str) -> int:
    bits = int(ptx_type[1:])
    low, high = (0, 2**bits - 1) if ptx_type[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return max(low, min(high, value))


@pytest.mark.parametrize("source", INTEGERS)
def test_integer_to_integer(source):
    a = integer_edges(source, np.random.default_rng(5))
    values = integer_values(a, source)
    for to in INTEGERS:
        dtype = REGISTERS[int(to[1:])]
        got = alu(f"cvt.{to}.{source} d, a;", dtype, a=a)
        np.testing.assert_array_equal(got, np.array([register(v, to) for v in values], dtype), err_msg=to)
        got = alu(f"cvt.sat.{to}.{source} d, a;", dtype, a=a)
        expected = np.array([register(clamp(v, to), to) for v in values], dtype)
        np.testing.assert_array_equal(got, expected, err_msg=f"sat {to}")


def test_a_wider_register_is_extended_by_the_sign():
    a = np.array([0x80, 0x7F, 0xFFFF], np.uint32)
    np.testing.assert_array_equal(alu("cvt.s8.s32 d, a;", np.uint32, a=a), [0xFFFFFF80, 0x7F, 0xFFFFFFFF])
    np.testing.assert_array_equal(alu("cvt.u8.u32 d, a;", np.uint32, a=a), [0x80, 0x7F, 0xFF])
    np.testing.assert_array_equal(alu("cvt.s16.s32 d, a;", np.uint64, a=a), [0x80, 0x7F, 2**64 - 1])


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("source", INTEGERS)
def test_integer_to_float(source, mode):
    a = integer_edges(source, np.random.default_rng(6))
    values = integer_values(a, source)
    for to, (fmt, dtype) in FLOATS.items():
        expected = [fmt.round(Fraction(v), mode) for v in values]
        got = alu(f"cvt.{mode}.{to}.{source} d, a;", dtype, a=a)
        check_codes(fmt, got, expected, [a], None)


def rounded(value: Fraction, mode: str) -> int:
    return {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}[mode](value)


@pytest.mark.parametrize("source", ["f32", "f64", "bf16"])
@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
def test_float_to_integer(mode, source):
    fmt, dtype = FLOATS[source]
    rng = np.random.default_rng(7)
    codes = floats_of_interest(fmt, 120, rng)
    edges = [
        x for k in (7, 8, 15, 16, 31, 32, 63, 64) for x in (2.0**k, 2.0**k - 1, 2.0**k - 0.5, 2.0**k + 1)
    ]
    edges += [0.5, 1.5, 2.5, 0.49, 0.51, 1e9]
    more = np.array([fmt.round(Fraction(s * x), "rn") for x in edges for s in (1, -1)], np.uint64)
    a = np.concatenate([codes, more]).astype(dtype)
    values = [fmt.value(int(c)) for c in a]
    for to in INTEGERS:
        bits = int(to[1:])
        # NaN gives 0 from a small source to a small destination, otherwise the destination's top bit.
        nan = 1 << (bits - 1) if source == "f64" or bits == 64 else 0
        expected = []
        for value in values:
            if not isinstance(value, float):
                result = clamp(rounded(value, mode), to)
            else:
                result = nan if math.isnan(value) else clamp(2**80 if value > 0 else -(2**80), to)
            expected.append(register(result, to))
        register_dtype = REGISTERS[bits]
        got = alu(f"cvt.{mode}.{to}.{source} d, a;", register_dtype, a=a)
        np.testing.assert_array_equal(got, np.array(expected, np.uint64).astype(register_dtype), err_msg=to)


@pytest.mark.parametrize("source", ["f32", "f64"])
def test_rounding_to_an_integral_float(source):
    fmt, dtype = FLOATS[source]
    a = floats_of_interest(fmt, 500, np.random.default_rng(8)).astype(dtype)
    x = a.view({"f32": np.float32, "f64": np.float64}[source])
    functions = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
    for mode, function in functions.items():
        with np.errstate(invalid="ignore"):
            expected = function(x)
        got = alu(f"cvt.{mode}.{source}.{source} d, a;", dtype, a=a).view(x.dtype)
        np.testing.assert_array_equal(got, expected, err_msg=mode)
        number = ~np.isnan(x)
        np.testing.assert_array_equal(np.signbit(got)[number], np.signbit(expected)[number])


def test_flushing_and_saturation():
    x = np.array([1e-40, -1e-40, 0.5, 3, -3, np.nan], np.float32)
    a = x.view(np.uint32)
    np.testing.assert_array_equal(alu("cvt.ftz.f32.f32 d, a;", np.uint32, a=a)[:3], [0, 1 << 31, a[2]])
    np.testing.assert_array_equal(alu("cvt.rpi.s32.f32 d, a;", np.uint32, a=a)[:1], [1])
    np.testing.assert_array_equal(alu("cvt.rpi.ftz.s32.f32 d, a;", np.uint32, a=a)[:1], [0])
    wide = np.array([1e-40, 0.25, 7.0, -1.0, np.nan]).view(np.uint64)
    got = alu("cvt.rn.sat.f32.f64 d, a;", np.uint32, a=wide).view(np.float32)
    np.testing.assert_array_equal(got, np.array([np.float32(1e-40), 0.25, 1, 0, 0], np.float32))
    got = alu("cvt.rn.ftz.f32.f64 d, a;", np.uint32, a=wide).view(np.float32)
    assert got[0] == 0


def test_halves_to_the_other_half():
    sources = {"f16": np.float16, "bf16": ml_dtypes.bfloat16}
    for (source, dtype), mode in itertools.product(sources.items(), ["rn", "rz"]):
        to = "bf16" if source == "f16" else "f16"
        values = HALF_CODES.view(dtype).astype(np.float64)
        expected = round_codes(FLOATS[to][0], values, mode)
        compare(alu(f"cvt.{mode}.{to}.{source} d, a;", np.uint16, a=HALF_CODES), expected, values, 0x7FFF)
