"""Integer arithmetic, logic, bit fields and moves against Python integers."""

import itertools

import numpy as np
import pytest
from alu import DTYPES, Refused, alu, cells, integers, lanes, numbers, pairs, signed, width

INTEGERS = ["u16", "s16", "u32", "s32", "u64", "s64"]


def truncated_quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


BINARY = {
    "add": lambda a, b, bits: a + b,
    "sub": lambda a, b, bits: a - b,
    "mul.lo": lambda a, b, bits: a * b,
    "mul.hi": lambda a, b, bits: a * b >> bits,
    "min": lambda a, b, bits: min(a, b),
    "max": lambda a, b, bits: max(a, b),
    "div": lambda a, b, bits: truncated_quotient(a, b),
    "rem": lambda a, b, bits: a - b * truncated_quotient(a, b),
}


@pytest.mark.parametrize("ptx_type", INTEGERS)
@pytest.mark.parametrize("op", BINARY)
def test_integer_binary(op, ptx_type):
    rng = np.random.default_rng(1)
    bits = width(ptx_type)
    a, b = pairs(integers(bits, rng), rng)
    if op in ("div", "rem"):
        b = np.where(b == 0, 7, b).astype(b.dtype)
    expected = [
        BINARY[op](x, y, bits) for x, y in zip(numbers(a, ptx_type), numbers(b, ptx_type), strict=True)
    ]
    got = alu(f"{op}.{ptx_type} d, a, b;", a.dtype, a=a, b=b)
    np.testing.assert_array_equal(got, cells(expected, bits))


@pytest.mark.parametrize("ptx_type", INTEGERS)
def test_integer_ternary(ptx_type):
    rng = np.random.default_rng(2)
    bits = width(ptx_type)
    a, b = pairs(integers(bits, rng), rng)
    c = rng.permutation(a)
    triples = list(zip(*(numbers(x, ptx_type) for x in (a, b, c)), strict=True))
    for op, reference in {
        "mad.lo": lambda x, y, z: x * y + z,
        "mad.hi": lambda x, y, z: (x * y >> bits) + z,
        "sad": lambda x, y, z: abs(x - y) + z,
    }.items():
        got = alu(f"{op}.{ptx_type} d, a, b, c;", a.dtype, a=a, b=b, c=c)
        np.testing.assert_array_equal(got, cells([reference(*t) for t in triples], bits), err_msg=op)


@pytest.mark.parametrize("ptx_type", ["u16", "s16", "u32", "s32"])
def test_wide_products(ptx_type):
    rng = np.random.default_rng(3)
    bits = width(ptx_type)
    a, b = pairs(integers(bits, rng), rng)
    wide = DTYPES[2 * bits]
    c = integers(2 * bits, rng, a.size)[: a.size].astype(wide)
    c = np.resize(c, a.size)
    products = [x * y for x, y in zip(numbers(a, ptx_type), numbers(b, ptx_type), strict=True)]
    np.testing.assert_array_equal(
        alu(f"mul.wide.{ptx_type} d, a, b;", wide, a=a, b=b), cells(products, 2 * bits)
    )
    sums = [p + int(z) for p, z in zip(products, c, strict=True)]
    got = alu(f"mad.wide.{ptx_type} d, a, b, c;", wide, a=a, b=b, c=c)
    np.testing.assert_array_equal(got, cells(sums, 2 * bits))


def test_saturating_integers():
    rng = np.random.default_rng(4)
    a, b = pairs(integers(32, rng), rng)
    c = rng.permutation(a)

    def clamp(value: int) -> int:
        return max(-(2**31), min(2**31 - 1, value))

    x, y, z = (numbers(v, "s32") for v in (a, b, c))
    expected = [clamp(p + q) for p, q in zip(x, y, strict=True)]
    np.testing.assert_array_equal(alu("add.sat.s32 d, a, b;", np.uint32, a=a, b=b), cells(expected, 32))
    expected = [clamp(p - q) for p, q in zip(x, y, strict=True)]
    np.testing.assert_array_equal(alu("sub.sat.s32 d, a, b;", np.uint32, a=a, b=b), cells(expected, 32))
    expected = [clamp((p * q >> 32) + r) for p, q, r in zip(x, y, z, strict=True)]
    got = alu("mad.hi.sat.s32 d, a, b, c;", np.uint32, a=a, b=b, c=c)
    np.testing.assert_array_equal(got, cells(expected, 32))


@pytest.mark.parametrize("ptx_type", ["s16", "s32", "s64"])
def test_integer_unary(ptx_type):
    bits = width(ptx_type)
    a = integers(bits, np.random.default_rng(5))
    x = numbers(a, ptx_type)
    np.testing.assert_array_equal(
        alu(f"abs.{ptx_type} d, a;", a.dtype, a=a), cells([abs(v) for v in x], bits)
    )
    np.testing.assert_array_equal(alu(f"neg.{ptx_type} d, a;", a.dtype, a=a), cells([-v for v in x], bits))


@pytest.mark.parametrize("ptx_type", INTEGERS)
@pytest.mark.parametrize("op", ["div", "rem"])
def test_division_by_zero_is_reported(op, ptx_type):
    a = cells([5, 6, 7], width(ptx_type))
    with pytest.raises(Refused, match="DIV0"):
        alu(f"{op}.{ptx_type} d, a, b;", a.dtype, a=a, b=cells([1, 0, 1], width(ptx_type)))


def test_division_by_zero_in_a_lane_that_is_off_is_none():
    got = lanes(
        "@p div.u32 d, a, b;",
        {"d": np.uint32},
        p=np.array([True, False]),
        a=np.array([8, 9], np.uint32),
        b=np.array([2, 0], np.uint32),
    )
    assert got["d"][0] == 4


def test_dp4a():
    rng = np.random.default_rng(6)
    a, b, c = (rng.integers(0, 2**32, 500, dtype=np.uint64).astype(np.uint32) for _ in range(3))
    for sa, sb in itertools.product("us", repeat=2):
        bytes_a = a[:, None].view(np.int8 if sa == "s" else np.uint8).astype(np.int64)
        bytes_b = b[:, None].view(np.int8 if sb == "s" else np.uint8).astype(np.int64)
        expected = ((bytes_a * bytes_b).sum(1) + c).astype(np.uint32)
        got = alu(f"dp4a.{sa}32.{sb}32 d, a, b, c;", np.uint32, a=a, b=b, c=c)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("ptx_type", ["u32", "s32", "u64", "s64"])
def test_carries_chain(ptx_type):
    """Sums, differences and products of two-word numbers, word by word."""
    rng = np.random.default_rng(15)
    bits = width(ptx_type)
    words = [rng.permutation(integers(bits, rng)) for _ in range(6)]
    words[1][:40] = words[0][:40]  # equal low words: no borrow
    a0, b0, a1, b1, c0, c1 = words
    names = {"a": a0, "b": b0, "x": a1, "y": b1, "u": c0, "v": c1}
    out = dict.fromkeys("def", a0.dtype.type)

    def number(*parts: np.ndarray) -> list[int]:
        return [sum(int(w) << bits * i for i, w in enumerate(row)) for row in zip(*parts, strict=True)]

    a, b = number(a0, a1), number(b0, b1)
    text = f"add.cc.{ptx_type} d, a, b; addc.cc.{ptx_type} e, x, y; addc.{ptx_type} f, 0, 0;"
    got = lanes(text, out, **names)
    assert number(got["d"], got["e"], got["f"]) == [p + q for p, q in zip(a, b, strict=True)]
    text = f"sub.cc.{ptx_type} d, a, b; subc.cc.{ptx_type} e, x, y; subc.{ptx_type} f, 0, 0;"
    got = lanes(text, out, **names)
    wanted = [(p - q) % (1 << 3 * bits) for p, q in zip(a, b, strict=True)]
    assert number(got["d"], got["e"], got["f"]) == wanted
    if ptx_type[0] == "u":
        text = f"mad.lo.cc.{ptx_type} d, a, b, u; madc.hi.cc.{ptx_type} e, a, b, v; addc.{ptx_type} f, 0, 0;"
        got = lanes(text, out, **names)
        wanted = [int(p) * int(q) + r for p, q, r in zip(a0, b0, number(c0, c1), strict=True)]
        assert number(got["d"], got["e"], got["f"]) == wanted
    else:
        high = [p * q >> bits for p, q in zip(numbers(a0, ptx_type), numbers(b0, ptx_type), strict=True)]
        got = lanes(f"add.cc.{ptx_type} d, a, b; madc.hi.{ptx_type} e, a, b, v;", out, **names)
        carry = [(int(p) + int(q)) >> bits for p, q in zip(a0, b0, strict=True)]
        wanted = [h + int(v) + k for h, v, k in zip(high, c1, carry, strict=True)]
        np.testing.assert_array_equal(got["e"], cells(wanted, bits))


# ---------------------------------------------------------------- bits


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_logic(bits):
    rng = np.random.default_rng(7)
    a, b = pairs(integers(bits, rng), rng)
    for op, expected in {"and": a & b, "or": a | b, "xor": a ^ b}.items():
        np.testing.assert_array_equal(alu(f"{op}.b{bits} d, a, b;", a.dtype, a=a, b=b), expected)
    np.testing.assert_array_equal(alu(f"not.b{bits} d, a;", a.dtype, a=a), ~a)


def test_predicate_logic():
    a, b = np.array([False, False, True, True]), np.array([False, True, False, True])
    for op, expected in {"and": a & b, "or": a | b, "xor": a ^ b}.items():
        np.testing.assert_array_equal(alu(f"{op}.pred d, a, b;", bool, a=a, b=b), expected)
    np.testing.assert_array_equal(alu("not.pred d, a;", bool, a=a), ~a)
    np.testing.assert_array_equal(alu("mov.pred d, a;", bool, a=a), a)


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_shifts(bits):
    rng = np.random.default_rng(8)
    a = np.repeat(integers(bits, rng), 8)
    n = np.resize(np.array([0, 1, 7, bits - 1, bits, bits + 1, 200, 2**32 - 1], np.uint32), a.size)
    left = cells([int(x) << min(int(k), bits) for x, k in zip(a, n, strict=True)], bits)
    np.testing.assert_array_equal(alu(f"shl.b{bits} d, a, n;", a.dtype, a=a, n=n), left)
    for kind in "bus":
        x = numbers(a, f"{'s' if kind == 's' else 'u'}{bits}")
        right = cells([v >> min(int(k), bits) for v, k in zip(x, n, strict=True)], bits)
        np.testing.assert_array_equal(alu(f"shr.{kind}{bits} d, a, n;", a.dtype, a=a, n=n), right)


def test_funnel_shifts():
    rng = np.random.default_rng(9)
    a, b = (rng.integers(0, 2**32, 400, dtype=np.uint64).astype(np.uint32) for _ in range(2))
    c = np.resize(np.array([0, 1, 31, 32, 33, 63, 64, 2**31, 17], np.uint32), 400)
    for direction, mode in itertools.product("lr", ["clamp", "wrap"]):
        expected = []
        for low, high, amount in zip(a.tolist(), b.tolist(), c.tolist(), strict=True):
            n = amount % 32 if mode == "wrap" else min(amount, 32)
            pair = high << 32 | low
            expected.append((pair << n) >> 32 if direction == "l" else pair >> n)
        got = alu(f"shf.{direction}.{mode}.b32 d, a, b, c;", np.uint32, a=a, b=b, c=c)
        np.testing.assert_array_equal(got, cells(expected, 32), err_msg=f"{direction} {mode}")


def test_lop3_by_its_defining_table():
    a, b, c = (np.array([v], np.uint32) for v in (0xF0F0F0F0, 0xCCCCCCCC, 0xAAAAAAAA))
    for table in range(256):
        got = alu(f"lop3.b32 d, a, b, c, {table};", np.uint32, a=a, b=b, c=c)
        assert got[0] == table * 0x01010101
    rng = np.random.default_rng(10)
    a, b, c = (rng.integers(0, 2**32, 100, dtype=np.uint64).astype(np.uint32) for _ in range(3))
    np.testing.assert_array_equal(
        alu("lop3.b32 d, a, b, c, 0xe8;", np.uint32, a=a, b=b, c=c), a & b | a & c | b & c
    )


def test_byte_permutation():
    rng = np.random.default_rng(11)
    a, b, c = (rng.integers(0, 2**32, 300, dtype=np.uint64).astype(np.uint32) for _ in range(3))

    def permute(x: int, y: int, selectors: list[int]) -> int:
        source = [*x.to_bytes(4, "little"), *y.to_bytes(4, "little")]
        chosen = [source[s & 7] for s in selectors]
        chosen = [(255 if v > 127 else 0) if s & 8 else v for v, s in zip(chosen, selectors, strict=True)]
        return int.from_bytes(bytes(chosen), "little")

    triples = list(zip(a.tolist(), b.tolist(), c.tolist(), strict=True))
    expected = [permute(x, y, [z >> 4 * i & 15 for i in range(4)]) for x, y, z in triples]
    np.testing.assert_array_equal(alu("prmt.b32 d, a, b, c;", np.uint32, a=a, b=b, c=c), cells(expected, 32))
    # The tables of the ISA, most significant byte first, for the control values 0 to 3.
    modes = {
        "f4e": ["3210", "4321", "5432", "6543"],
        "b4e": ["5670", "6701", "7012", "0123"],
        "rc8": ["0000", "1111", "2222", "3333"],
        "ecl": ["3210", "3211", "3222", "3333"],
        "ecr": ["0000", "1110", "2210", "3210"],
        "rc16": ["1010", "3232", "1010", "3232"],
    }
    for mode, rows in modes.items():
        expected = [permute(x, y, [int(s) for s in reversed(rows[z & 3])]) for x, y, z in triples]
        got = alu(f"prmt.b32.{mode} d, a, b, c;", np.uint32, a=a, b=b, c=c)
        np.testing.assert_array_equal(got, cells(expected, 32), err_msg=mode)


@pytest.mark.parametrize("bits", [32, 64])
def test_counting_and_reversing_bits(bits):
    a = integers(bits, np.random.default_rng(12))
    x = [int(v) for v in a]
    got = alu(f"popc.b{bits} d, a;", np.uint32, a=a)
    np.testing.assert_array_equal(got, [v.bit_count() for v in x])
    np.testing.assert_array_equal(
        alu(f"clz.b{bits} d, a;", np.uint32, a=a), [bits - v.bit_length() for v in x]
    )
    reverse = [int(f"{v:0{bits}b}"[::-1], 2) for v in x]
    np.testing.assert_array_equal(alu(f"brev.b{bits} d, a;", a.dtype, a=a), cells(reverse, bits))
    for kind in "us":
        leading = [(~signed(v, bits) if kind == "s" and v >> (bits - 1) else v).bit_length() - 1 for v in x]
        got = alu(f"bfind.{kind}{bits} d, a;", np.uint32, a=a)
        np.testing.assert_array_equal(got, cells(leading, 32))
        shift = [bits - 1 - p if p >= 0 else -1 for p in leading]
        got = alu(f"bfind.shiftamt.{kind}{bits} d, a;", np.uint32, a=a)
        np.testing.assert_array_equal(got, cells(shift, 32))


@pytest.mark.parametrize("bits", [32, 64])
def test_bit_fields(bits):
    rng = np.random.default_rng(13)
    a = np.repeat(integers(bits, rng, 40), 60)
    b = rng.permutation(a)
    choices = np.array([0, 1, 5, bits - 1, bits, bits + 3, 255, 256 + 4, *range(bits)], np.uint32)
    position, length = rng.choice(choices, a.size), rng.choice(choices, a.size)
    rows = list(zip(a.tolist(), b.tolist(), (position & 255).tolist(), (length & 255).tolist(), strict=True))
    for kind in "us":
        expected = []
        for x, _, p, n in rows:
            value = signed(x, bits) if kind == "s" else x
            if kind == "s":
                # Beyond the register the field goes on with the register's sign.
                field = value >> p & ((1 << n) - 1)
                expected.append(signed(field, n) if n else 0)
            else:
                expected.append(value >> p & ((1 << n) - 1))
        got = alu(f"bfe.{kind}{bits} d, a, p, n;", a.dtype, a=a, p=position, n=length)
        np.testing.assert_array_equal(got, cells(expected, bits), err_msg=kind)
    expected = []
    for x, y, p, n in rows:
        field = ((1 << n) - 1) << p
        expected.append(y & ~field | (x << p) & field)
    got = alu(f"bfi.b{bits} d, a, b, p, n;", a.dtype, a=a, b=b, p=position, n=length)
    np.testing.assert_array_equal(got, cells(expected, bits))


# ---------------------------------------------------------------- moves


def test_moves_pack_and_unpack():
    rng = np.random.default_rng(14)
    a = rng.integers(0, 2**63, 70, dtype=np.uint64)
    halves = lanes("mov.b64 {lo, hi}, a;", {"lo": np.uint32, "hi": np.uint32}, a=a)
    np.testing.assert_array_equal(halves["lo"], a.astype(np.uint32))
    np.testing.assert_array_equal(halves["hi"], (a >> np.uint64(32)).astype(np.uint32))
    quarters = lanes("mov.b64 {p, q, r, s}, a;", dict.fromkeys("pqrs", np.uint16), a=a)
    for i, name in enumerate("pqrs"):
        np.testing.assert_array_equal(quarters[name], (a >> np.uint64(16 * i)).astype(np.uint16))
    np.testing.assert_array_equal(alu("mov.b64 d, {lo, hi};", np.uint64, **halves), a)
    np.testing.assert_array_equal(alu("mov.b64 d, {p, q, r, s};", np.uint64, **quarters), a)
    upper = alu("mov.b32 {_, d}, x;", np.uint16, x=halves["lo"])
    np.testing.assert_array_equal(upper, quarters["q"])


def test_unpacking_may_overwrite_its_source():
    got = lanes("mov.b32 x, {d, e}; mov.b32 {e, d}, x;", {"d": np.uint16, "e": np.uint16, "x": np.uint32},
                d=np.array([1], np.uint16), e=np.array([2], np.uint16))  # fmt: skip
    assert (got["d"][0], got["e"][0], got["x"][0]) == (2, 1, 0x20001)


def test_constants_take_the_width_of_the_instruction():
    assert alu("add.u16 d, a, -1;", np.uint16, a=np.array([5], np.uint16))[0] == 4
    assert alu("mov.b32 d, -2; add.u32 d, d, a;", np.uint32, a=np.array([0], np.uint32))[0] == 2**32 - 2
    assert alu("add.s64 d, a, -1;", np.uint64, a=np.array([0], np.uint64))[0] == 2**64 - 1
    assert alu("add.f32 d, a, 0f3F800000;", np.uint32, a=np.array([0], np.uint32))[0] == 0x3F800000
    assert alu("add.f32 d, a, 1.5;", np.uint32, a=np.array([0], np.uint32))[0] == 0x3FC00000
    assert alu("add.f64 d, a, 0dBFF0000000000000;", np.uint64, a=np.array([0], np.uint64))[0] == 0xBFF << 52


def test_address_spaces():
    a = np.array([0x410], np.uint64)
    for space, window in {"shared": 0xF1, "local": 0xF2, "param": 0xF3}.items():
        generic = alu(f"cvta.{space}.u64 d, a;", np.uint64, a=a)
        assert generic[0] == window << 56 | 0x410
        assert alu(f"cvta.to.{space}.u64 d, a;", np.uint64, a=generic)[0] == 0x410
        assert alu(f"isspacep.{space} d, a;", bool, a=generic)[0]
        assert not alu("isspacep.global d, a;", bool, a=generic)[0]
    assert alu("cvta.to.global.u64 d, a;", np.uint64, a=a)[0] == 0x410
    assert alu("isspacep.global d, a;", bool, a=a)[0]
    assert not alu("isspacep.shared d, a;", bool, a=a)[0]


def test_guard_leaves_other_lanes_alone():
    p = np.array([True, False] * 40)
    a, d = np.arange(80, dtype=np.uint32), np.full(80, 7, np.uint32)
    got = lanes("@p add.u32 d, a, 1;", {"d": np.uint32}, a=a, p=p, d=d)["d"]
    np.testing.assert_array_equal(got[p], a[p] + 1)
    got = lanes("mov.b32 d, 7; @!p add.u32 d, a, 1;", {"d": np.uint32}, a=a, p=p)["d"]
    np.testing.assert_array_equal(got, np.where(p, 7, a + 1))
