"""mma.sync and ldmatrix against numpy, exactly and with a tensor core's short accumulator."""

import ml_dtypes
import numpy as np
import pytest
from checks import SEEDS, is_reported, stays_silent
from ptxsim import In, Out, Simulator, compile
from short_sum import short_products

SOURCE = "tests/ptxsim/kernels/mma.cu"


def launch(kernel: str, args: list, arch: str = "80", **options: int) -> None:
    with Simulator(**options) as sim:
        sim.launch(compile(SOURCE, arch=arch), kernel, 1, 32, args)
        sim.run()


def exact(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return (a.astype(np.float64) @ b.astype(np.float64) + c.astype(np.float64)).astype(np.float32)


# kernel: dtype, k, whether B is given as rows of k instead of columns, architecture
PRODUCTS = {
    "product_bf16": (ml_dtypes.bfloat16, 16, False, "80"),
    "product_bf16_transposed": (ml_dtypes.bfloat16, 16, True, "80"),
    "product_f16": (np.float16, 16, False, "80"),
    "product_bf16_k8": (ml_dtypes.bfloat16, 8, False, "80"),
    "product_e4m3": (ml_dtypes.float8_e4m3fn, 32, False, "90a"),
}


def operands(kernel: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list, str]:
    dtype, k, rows, arch = PRODUCTS[kernel]
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((16, k)).astype(dtype)
    b = rng.standard_normal((k, 8)).astype(dtype)
    c = rng.standard_normal((16, 8)).astype(np.float32)
    given = np.ascontiguousarray(b if rows else b.T)
    raw = np.uint8 if a.itemsize == 1 else np.uint16
    return a, b, c, [In(a.view(raw)), In(given.view(raw)), In(c)], arch


@pytest.mark.parametrize("kernel", PRODUCTS)
def test_products_are_exact(kernel: str) -> None:
    for seed in SEEDS:
        a, b, c, arguments, arch = operands(kernel, seed)
        d = np.zeros((16, 8), np.float32)
        launch(kernel, [*arguments, Out(d)], arch, seed=seed)
        np.testing.assert_array_equal(d, exact(a, b, c))


@pytest.mark.parametrize("bits", [13, 23])
@pytest.mark.parametrize("kernel", PRODUCTS)
def test_products_with_a_short_accumulator(kernel: str, bits: int) -> None:
    differing = 0
    for seed in SEEDS:
        a, b, c, arguments, arch = operands(kernel, seed)
        d = np.zeros((16, 8), np.float32)
        launch(kernel, [*arguments, Out(d)], arch, seed=seed, hwacc=bits)
        np.testing.assert_array_equal(d, short_products(a, b, c, bits))
        differing += (d != exact(a, b, c)).sum()
    assert differing > 0


def test_infinity_and_nan_reach_their_row_and_column_only() -> None:
    a, b, c, _, _ = operands("product_bf16", 0)
    a[3, 5], a[7, 1] = np.inf, np.nan
    d = np.zeros((16, 8), np.float32)
    arguments = [In(a.view(np.uint16)), In(np.ascontiguousarray(b.T).view(np.uint16)), In(c), Out(d)]
    for hwacc in (0, 13):
        launch("product_bf16", arguments, hwacc=hwacc)
        assert np.isinf(d[3]).all()
        assert np.isnan(d[7]).all()
        assert np.isfinite(np.delete(d, [3, 7], 0)).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices(transposed: bool) -> None:
    x = np.random.default_rng(0).integers(0, 1 << 16, (4, 8, 8)).astype(np.uint16)
    rows = np.random.default_rng(1).permutation(32).astype(np.int32)
    y = np.zeros_like(x)
    launch("matrices_transposed" if transposed else "matrices", [In(x), Out(y), In(rows)])
    expected = x.reshape(32, 8)[rows].reshape(4, 8, 8)
    np.testing.assert_array_equal(y, expected.transpose(0, 2, 1) if transposed else expected)


def test_stored_matrices() -> None:
    x = np.random.default_rng(0).integers(0, 1 << 16, (4, 8, 8)).astype(np.uint16)
    y = np.zeros_like(x)
    launch("store_matrices", [In(x), Out(y)], arch="90a")
    np.testing.assert_array_equal(y, x.transpose(0, 2, 1))


# Kernel: the kind of the error, the argument that is misuse, and the one that is not.
RULES = {
    "matrices_unordered": ("RACE", 0, 1),
    "matrices_misaligned": ("MISALIGNED", 7, 8),
    "mma_by_some_lanes": ("DIVERGED", 16, 32),
}


def run(kernel: str, argument: int, **options: int) -> None:
    x, y = np.zeros(256, np.uint16), np.zeros(128, np.uint32)
    launch(kernel, [In(x), Out(y), argument], **options)


@pytest.mark.parametrize("kernel", RULES)
def test_misuse_is_reported(kernel: str) -> None:
    kind, misuse, _ = RULES[kernel]
    is_reported(lambda **options: run(kernel, misuse, **options), kind, f"kernel {kernel}", "PTX line")


@pytest.mark.parametrize("kernel", RULES)
def test_right_use_is_silent(kernel: str) -> None:
    *_, right = RULES[kernel]
    stays_silent(lambda **options: run(kernel, right, **options))
