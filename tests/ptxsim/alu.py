"""Single instructions on vectors of inputs, and a module's description, without a machine."""

from __future__ import annotations

import ctypes
import functools
import itertools
import json
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import ptxsim

WIDTHS = {
    np.dtype(bool): "pred",
    np.dtype(np.uint16): "b16",
    np.dtype(np.uint32): "b32",
    np.dtype(np.uint64): "b64",
}


class Refused(ValueError):
    """The parser or the instruction reported an error."""


@functools.cache
def library() -> ctypes.CDLL:
    ptxsim.make("ptxsim")
    lib = ctypes.CDLL(str(ptxsim.BUILD / "libptxsim.so"))
    lib.ptxsim_inspect.restype = ctypes.c_char_p
    lib.ptxsim_inspect_error.restype = ctypes.c_char_p
    return lib


def failure() -> Refused:
    return Refused(library().ptxsim_inspect_error().decode())


def describe(text: str) -> dict[str, Any]:
    """The module's variables, kernels and decoded instructions."""
    result = library().ptxsim_inspect(text.encode())
    if result is None:
        raise failure()
    return json.loads(result)


def lanes(body: str, outputs: Mapping[str, Any], **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs after `body`. Its registers have the names of inputs and outputs, and their dtypes' widths
    (bool: a predicate). An input named as an output is that register's value before."""
    arrays = {name: np.ascontiguousarray(np.atleast_1d(value)) for name, value in inputs.items()}
    n = max(value.size for value in arrays.values())
    dtypes = {name: value.dtype for name, value in arrays.items()}
    dtypes |= {name: np.dtype(dtype) for name, dtype in outputs.items()}
    declarations = "".join(f".reg .{WIDTHS[dtype]} {name}; " for name, dtype in dtypes.items())
    columns = [np.broadcast_to(value, (n,)).astype(np.uint64) for value in arrays.values()]
    columns += [np.zeros(n, np.uint64) for _ in outputs]
    names = [*arrays, *outputs]
    pointers = (ctypes.c_void_p * len(names))(*[column.ctypes.data for column in columns])
    c_names = (ctypes.c_char_p * len(names))(*[name.encode() for name in names])
    text = (declarations + body).encode()
    if library().ptxsim_inspect_alu(text, c_names, pointers, len(arrays), len(names), ctypes.c_size_t(n)):
        raise failure()
    results = {}
    for column, (name, dtype) in zip(columns[len(arrays) :], outputs.items(), strict=True):
        bits = 1 if np.dtype(dtype) == bool else 8 * np.dtype(dtype).itemsize
        if bits < 64:
            assert not (column >> np.uint64(bits)).any(), f"{name} has bits above its width"
        results[name] = column.astype(dtype)
    return results


def alu(body: str, result: Any, **inputs: np.ndarray) -> np.ndarray:
    """`lanes` with the one output d."""
    return lanes(body, {"d": result}, **inputs)["d"]


# ---------------------------------------------------------------- floating-point formats, in exact arithmetic


class Format:
    """A binary format; infinities and NaN as in IEEE 754 unless `finite` (e4m3)."""

    def __init__(self, exponent_bits: int, fraction_bits: int, finite: bool = False):
        self.exponent_bits, self.fraction_bits, self.finite = exponent_bits, fraction_bits, finite
        self.bias = (1 << (exponent_bits - 1)) - 1
        self.bits = 1 + exponent_bits + fraction_bits
        self.infinity = ((1 << exponent_bits) - 1) << fraction_bits
        self.largest = self.infinity + (1 << fraction_bits) - 2 if finite else self.infinity - 1
        self.sign = 1 << (self.bits - 1)

    def value(self, code: int) -> Fraction | float:
        """The value of a code, as a Fraction, or a float for infinities and NaN."""
        magnitude = code & (self.sign - 1)
        if magnitude > self.largest:
            if self.finite or magnitude > self.infinity:
                return float("nan")
            return float("-inf") if code & self.sign else float("inf")
        field, fraction = magnitude >> self.fraction_bits, magnitude & ((1 << self.fraction_bits) - 1)
        if field:
            fraction |= 1 << self.fraction_bits
        exact = Fraction(fraction) * Fraction(2) ** (max(field, 1) - self.bias - self.fraction_bits)
        return -exact if code & self.sign else exact

    def floor_code(self, magnitude: Fraction) -> int:
        """The largest code of a non-negative value not above this one."""
        if magnitude == 0:
            return 0
        exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
        if Fraction(2) ** exponent > magnitude:
            exponent -= 1
        exponent = max(exponent, 1 - self.bias)
        units = magnitude // Fraction(2) ** (exponent - self.fraction_bits)
        return min(self.largest, (exponent + self.bias - 1 << self.fraction_bits) + units)

    def round(self, exact: Fraction, mode: str, negative_zero: bool = False) -> int:
        """The code that `exact` rounds to: mode rn, rz, rm, rp or rna (ties away from zero)."""
        negative = exact < 0 or (exact == 0 and negative_zero)
        sign = self.sign if negative else 0
        magnitude = abs(exact)
        down = self.floor_code(magnitude)
        rest = magnitude - self.value(down)
        if rest == 0:
            return sign | down
        up = down + 1
        if down == self.largest:  # the next number, if the format went on
            field = max(down >> self.fraction_bits, 1)
            step = Fraction(2) ** (field - self.bias - self.fraction_bits)
        else:
            step = self.value(up) - self.value(down)
        away = {
            "rz": False,
            "rm": negative,
            "rp": not negative,
            "rna": 2 * rest >= step,
            "rn": 2 * rest > step or (2 * rest == step and bool(down & 1)),
        }[mode]
        if down == self.largest and mode in ("rn", "rna"):
            away = 2 * rest >= step if not self.finite else True
        return sign | (up if away else down)


HALF, BF16, FLOAT, DOUBLE = Format(5, 10), Format(8, 7), Format(8, 23), Format(11, 52)
TF32, E4M3, E5M2 = Format(8, 10), Format(4, 3, finite=True), Format(5, 2)


def floats_of_interest(fmt: Format, count: int, rng: np.random.Generator) -> np.ndarray:
    """Zeros, subnormals, neighbours of powers of two, the largest, infinities, NaN; then random codes."""
    one = fmt.bias << fmt.fraction_bits
    smallest_normal = 1 << fmt.fraction_bits
    codes = [0, 1, 2, 3, smallest_normal - 1, smallest_normal, smallest_normal + 1, one, one + 1, one - 1]
    codes += [one + smallest_normal, one + smallest_normal // 2, fmt.largest, fmt.largest - 1, fmt.infinity]
    codes += [fmt.infinity + 1, fmt.infinity + (1 << (fmt.fraction_bits - 1))]
    codes += [code | fmt.sign for code in codes]
    some = rng.integers(0, 2**63, count, dtype=np.uint64) & np.uint64(2 * fmt.sign - 1)
    # Exponents close together, so that sums cancel and round.
    near = (some & np.uint64((1 << fmt.fraction_bits) - 1 | fmt.sign)) | (
        rng.integers(fmt.bias - 3, fmt.bias + 4, count).astype(np.uint64) << np.uint64(fmt.fraction_bits)
    )
    return np.concatenate([np.array(codes, np.uint64), some, near])


def is_nan(fmt: Format, code: int) -> bool:
    value = fmt.value(code)
    return isinstance(value, float) and math.isnan(value)


def check_codes(
    fmt: Format, got: np.ndarray, expected: list[int], operands: list[np.ndarray], nan: int | None
):
    """Codes are equal; where a NaN is expected (-1), one of them: `nan`, or any."""
    for i, (code, want) in enumerate(zip(got.tolist(), expected, strict=True)):
        shown = [hex(int(o[i])) for o in operands]
        if want == -1:
            assert is_nan(fmt, code), f"{shown}: {code:#x} instead of NaN"
            assert nan in (None, code), f"{shown}: {code:#x} instead of the canonical NaN"
        else:
            assert code == want, f"{shown}: {code:#x} instead of {want:#x}"


def operands_of(fmt: Format, dtype: type, seed: int, how_many: int, count: int = 350) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    codes = floats_of_interest(fmt, count, rng)
    edges = 34
    first = np.concatenate([np.repeat(codes[:edges], edges), codes])
    columns = [first]
    for _ in range(how_many - 1):
        columns.append(np.concatenate([np.tile(codes[:edges], edges), rng.permutation(codes)]))
    if how_many == 3:
        columns[2] = np.concatenate([rng.choice(codes, edges * edges), rng.permutation(codes)])
    return [column.astype(dtype) for column in columns]


# ---------------------------------------------------------------- integers

DTYPES = {16: np.uint16, 32: np.uint32, 64: np.uint64}


def width(ptx_type: str) -> int:
    return int(ptx_type[1:])


def signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def numbers(cells: np.ndarray, ptx_type: str) -> list[int]:
    """The cells as Python integers of the type."""
    bits = width(ptx_type)
    return [signed(int(c), bits) if ptx_type[0] == "s" else int(c) for c in cells]


def cells(values: list[int], bits: int) -> np.ndarray:
    return np.array([v & ((1 << bits) - 1) for v in values], np.uint64).astype(DTYPES[bits])


def integers(bits: int, rng: np.random.Generator, count: int = 300) -> np.ndarray:
    top = 1 << (bits - 1)
    edges = [0, 1, 2, 3, 5, 0x55, top - 1, top, top + 1, 2 * top - 1, 2 * top - 2]
    small = rng.integers(0, 100, count // 2)
    large = rng.integers(0, 2**63, count // 2, dtype=np.uint64) * np.uint64(3)
    return cells([*edges, *small.tolist(), *large.tolist()], bits)


def pairs(values: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Each of the first eleven (the edges) with each, then random partners."""
    edge = list(itertools.product(values[:11], values[:11]))
    a = np.concatenate([[p[0] for p in edge], values]).astype(values.dtype)
    b = np.concatenate([[p[1] for p in edge], rng.permutation(values)]).astype(values.dtype)
    return a, b
