"""C++ features as nvcc compiles them (kernels/features.cu), parsed and run on the whole simulator."""

import math

import ml_dtypes
import numpy as np
import pytest
from ptxsim import In, Out, Simulator, SimulatorError, compile

SOURCE = "tests/ptxsim/kernels/features.cu"
ARCHITECTURES = ["80", "90a"]


def launch(kernel: str, args: list, threads: int, arch: str, shared: int = 0) -> None:
    with Simulator() as sim:
        sim.launch(compile(SOURCE, arch=arch), kernel, 1, threads, args, shared=shared)
        sim.run()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_functions_out_of_line(arch):
    x = np.array([5, -3, 0, 1000, 7], np.int32)
    wide, narrow = np.zeros(5, np.int64), np.zeros(5, np.int32)
    launch("calls", [In(x), Out(wide), Out(narrow), 5], 32, arch)
    i = np.arange(5)
    np.testing.assert_array_equal(wide, x.astype(np.int64) * (x + 1))
    np.testing.assert_array_equal(narrow, i + x + 1 + np.where(x < 0, -1, x + 5))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_switches(arch):
    rng = np.random.default_rng(0)
    which = rng.integers(-1, 9, 96).astype(np.int32)
    x = rng.uniform(0, 10, 96).astype(np.float32)
    y = np.zeros(96, np.float32)
    launch("switches", [In(which), In(x), Out(y)], 96, arch)
    f = np.float32
    branches = [x + f(1), x * x, x - f(7), x / f(3), np.sqrt(x), np.floor(x), x * f(0.25) + f(2)]
    np.testing.assert_array_equal(y, np.select([which == k for k in range(7)], branches, -x))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_constant_global_and_local_arrays(arch):
    index = np.array([7, 0, 3, 3, 1, 6, 2, 5], np.int32)
    y, squares = np.zeros(8, np.float32), np.zeros(8, np.int32)
    launch("tables", [In(index), Out(y), Out(squares)], 8, arch)
    weights = np.array([0.5, 1, 2, -4], np.float32)
    np.testing.assert_array_equal(y, weights[index & 3] * index)
    np.testing.assert_array_equal(squares, index**2)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_static_and_dynamic_shared_memory(arch):
    x = np.random.default_rng(1).integers(0, 100, 64).astype(np.float32)
    z = np.random.default_rng(2).standard_normal(64)
    sums, wide_sums = np.zeros(64, np.float32), np.zeros(64)
    reversed_x, reversed_z = np.zeros(64, np.float32), np.zeros(64)
    arguments = [In(x), Out(sums), Out(reversed_x), In(z), Out(wide_sums), Out(reversed_z)]
    launch("shared", arguments, 64, arch, shared=512)
    np.testing.assert_array_equal(sums, np.tile(x[:32] + x[32:], 2))
    np.testing.assert_array_equal(wide_sums, np.tile(z[:32] + z[32:], 2))
    np.testing.assert_array_equal(reversed_x, x[::-1])
    np.testing.assert_array_equal(reversed_z, z[::-1])
    with pytest.raises(SimulatorError, match="SHARED_OOB"):
        launch("shared", arguments, 64, arch, shared=504)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_assertions(arch):
    y = np.zeros(32, np.int32)
    launch("asserts", [In(np.arange(32, dtype=np.int32)), Out(y)], 32, arch)
    np.testing.assert_array_equal(y, np.arange(32) + 1)
    with pytest.raises(SimulatorError, match=r"x\[threadIdx.x\] >= 0"):
        launch("asserts", [In(np.arange(-3, 29, dtype=np.int32)), Out(y)], 32, arch)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_packed_halves(arch):
    """compute_80 spells out in integers what compute_90 has instructions for: the bits are the same."""
    rng = np.random.default_rng(2)
    a = rng.standard_normal(64).astype(np.float16)
    b = rng.standard_normal(64).astype(ml_dtypes.bfloat16)
    c, d, codes = np.zeros(64, np.float16), np.zeros(64, np.uint16), np.zeros(32, np.uint16)
    launch("halves", [In(a), In(b.view(np.uint16)), Out(c), Out(d), Out(codes)], 32, arch)
    wide = a.astype(np.float64)
    np.testing.assert_array_equal(c, np.maximum((wide * wide + wide).astype(np.float16), -a))
    wide = b.astype(np.float64)
    fused = (wide * wide + np.abs(wide)).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(d.view(ml_dtypes.bfloat16), fused)
    expected = np.clip(fused.astype(np.float32), -448, 448).astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(codes.view(np.uint8), expected.view(np.uint8))


MATHEMATICS = "tests/ptxsim/kernels/mathematics.cu"
# Function, range of its argument, largest error in ulp by the CUDA C++ programming guide.
FLOAT_FUNCTIONS = [
    (np.exp, -87, 88, 2),
    (lambda x: np.log(np.abs(x)), -5, 5, 1),
    (np.sin, -20, 20, 2),
    (lambda x: np.cos((x.astype(np.float32) * np.float32(1e6)).astype(np.float64)), -20, 20, 2),
    (np.tanh, -10, 10, 2),
    (np.vectorize(math.erf), -4, 4, 2),
    (np.cbrt, -100, 100, 1),
    (lambda x: np.fmod(x, np.float64(np.float32(0.3))), -100, 100, 0),
    (lambda x: np.abs(x) ** np.float64(np.float32(1.7)), -100, 100, 4),
    (lambda x: np.log1p(np.abs(x)), -5, 5, 1),
    (np.expm1, -5, 5, 1),
    (lambda x: np.rint(x) + np.floor(x) * 16 + np.trunc(x) * 256, -100, 100, 0),
]
DOUBLE_FUNCTIONS = [
    (np.exp, -700, 700, 1),
    (lambda x: np.log(np.abs(x)), -5, 5, 1),
    (np.sin, -20, 20, 2),
    (lambda x: 1 / x, -5, 5, 0),
    (lambda x: np.sqrt(np.abs(x)), -5, 5, 0),
    (np.tanh, -10, 10, 2),
]


def mathematics(kernel: str, function: int, x: np.ndarray) -> np.ndarray:
    y = np.zeros_like(x)
    with Simulator() as sim:
        sim.launch(compile(MATHEMATICS), kernel, x.size // 128, 128, [In(x), Out(y), function])
        sim.run()
    return y


@pytest.mark.parametrize("function", range(len(FLOAT_FUNCTIONS)))
def test_mathematics_in_single_precision(function):
    reference, low, high, ulps = FLOAT_FUNCTIONS[function]
    x = np.random.default_rng(function).uniform(low, high, 2048).astype(np.float32)
    got, wanted = mathematics("functions", function, x), reference(x.astype(np.float64))
    # The guide counts from the rounded result: half an ulp more from the exact one.
    error = np.abs(got - wanted) / np.spacing(np.abs(wanted).astype(np.float32))
    assert error.max() <= (ulps + 0.5 if ulps else 0), f"{error.max()} ulp at {x[error.argmax()]!r}"


@pytest.mark.parametrize("function", range(len(DOUBLE_FUNCTIONS)))
def test_mathematics_in_double_precision(function):
    reference, low, high, ulps = DOUBLE_FUNCTIONS[function]
    x = np.random.default_rng(function).uniform(low, high, 2048)
    got, wanted = mathematics("doubles", function, x), reference(x)
    error = np.abs(got - wanted) / np.spacing(np.abs(wanted))
    assert error.max() <= (ulps + 1 if ulps else 0), (
        f"{error.max()} ulp at {x[error.argmax()]!r}"
    )  # numpy's own: 1


def test_integer_idioms():
    rng = np.random.default_rng(3)
    a = rng.integers(-(2**63), 2**63, 1024) >> rng.integers(0, 63, 1024)
    b = rng.integers(-(2**63), 2**63, 1024) >> rng.integers(0, 63, 1024)
    b[b == 0] = 5
    y, low, high = (np.zeros(1024, np.int64) for _ in range(3))
    with Simulator() as sim:
        sim.launch(compile(MATHEMATICS), "integers", 8, 128, [In(a), In(b), Out(y), Out(low), Out(high)])
        sim.run()
    for i, (p, q) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        quotient = abs(p) // abs(q) * (1 if (p < 0) == (q < 0) else -1)
        p64, q32 = p % 2**64, q % 2**32
        p32 = (p + 2**31) % 2**32 - 2**31
        wanted = quotient * 3 + (p - q * quotient) + p64 // 7 + int(math.fmod(p32, 10)) + q32 // 3
        wanted += p64.bit_count() + (q & -q).bit_length() + 64 - p64.bit_length()
        wanted += int(f"{q32:032b}"[::-1], 2) % 2**16
        assert int(y[i]) % 2**64 == wanted % 2**64, (p, q)
        assert (int(high[i]) << 64) + int(low[i]) % 2**64 == p * q
