"""C++ features as nvcc compiles them (kernels/features.cu), parsed and run on the whole simulator."""

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
