"""TMA, mbarrier, wgmma, clusters, flags between ranks: right kernels are right under any schedule."""

import async_kernels
import ml_dtypes
import numpy as np
import pytest
from checks import SCHEDULES, stays_silent
from ptxsim import Simulator, SimulatorError, compile, tensor_map
from short_sum import short_products

# Products are summed exactly and rounded to FP32 4 times a k-block; then come two products with scales and a
# sum over at most 8 k-blocks.
EXACT_BOUND = (4 + 3 + 8) * 2.0**-24
# 32 products and the running sum are cut to 13 bits below the largest, 4 times a k-block.
TRUNCATED_BOUND = 4 * 34 * 2.0**-13 + EXACT_BOUND
BF16_BOUND = 2.0**-8


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_gemm(mode):
    assert async_kernels.gemm("none", mode, 128, 128, 1024, wgmma_mode=mode) <= EXACT_BOUND


def test_gemm_with_truncated_accumulation():
    truncated = async_kernels.gemm("none", 1, hwacc=13)
    assert EXACT_BOUND < truncated <= TRUNCATED_BOUND
    assert async_kernels.gemm("none", 1, hwacc=14) < truncated


@pytest.mark.parametrize("bits", [13, 23])
def test_wgmma_with_a_short_accumulator(bits):
    """Bit for bit: one product of BF16, and four of FP8 that add to each other."""
    a, b = async_kernels.bf16_operands(bits)
    d = async_kernels.fragment_product(a, b, hwacc=bits)
    np.testing.assert_array_equal(d, short_products(a, b.T, np.zeros((64, 8)), bits))

    a, b, _, _ = async_kernels.operands(bits, 64, 64, 128)
    d = async_kernels.gemm_result("none", a, b, *np.ones((2, 64, 1), np.float32), hwacc=bits)
    wide_a, wide_b = (x.view(ml_dtypes.float8_e4m3fn)[:64] for x in (a, b))
    expected = np.zeros((64, 64), np.float32)
    for step in range(0, 128, 32):
        part = slice(step, step + 32)
        expected = short_products(wide_a[:, part], wide_b[:, part].T, expected, bits)
    np.testing.assert_array_equal(d, expected)


def test_gemm_is_repeatable():
    """The same seed gives the same run, whatever ran before in the process."""
    counted = []
    for seed in (3, 4, 3):
        async_kernels.gemm("none", seed)
        a, b, sa, sb = async_kernels.operands(seed, 64, 64, 256)
        out = np.zeros((64, 64), np.float32)
        with Simulator(seed=seed) as sim:
            sim.buffer(a), sim.buffer(b)
            maps = [tensor_map(x, (256, 64), (256,), (128, 64)) for x in (a, b)]
            module = compile(async_kernels.GEMM, arch="90a")
            sim.launch(module, "gemm_none", (1, 1), 256, [*maps, sa, sb, out, 64, 256], shared=51200)
            counted.append(sim.run()[0]["instructions"])
    assert counted[0] == counted[2] != counted[1]


def test_gemm_counts_its_copies_and_products():
    m, n, k = 64, 64, 256
    a, b, sa, sb = async_kernels.operands(0, m, n, k)
    out = np.zeros((m, n), np.float32)
    with Simulator() as sim:
        sim.buffer(a), sim.buffer(b)
        maps = [tensor_map(x, (k, 64), (k,), (128, 64)) for x in (a, b)]
        module = compile(async_kernels.GEMM, arch="90a")
        sim.launch(module, "gemm_none", (1, 1), 256, [*maps, sa, sb, out, n, k], shared=51200)
        (counters,) = sim.run()
    assert counters["bulk_load_bytes"] == (m + n) * k
    assert counters["multiply_adds"] == m * n * k
    assert counters["global_store"]["bytes"] == m * n * 4


@pytest.mark.parametrize("options", SCHEDULES, ids=lambda options: f"seed{options['seed']}")
def test_clean_gemm_raises_nothing(options):
    assert async_kernels.gemm("none", m=64, n=64, k=768, **options) <= EXACT_BOUND


@pytest.mark.parametrize("options", SCHEDULES, ids=lambda options: f"seed{options['seed']}")
def test_clean_cluster_gemm_raises_nothing(options):
    assert async_kernels.cluster_gemm("none", m=512, n=64, k=512, **options) <= BF16_BOUND


@pytest.mark.parametrize("kernel", ["none", "volatile_and_fences"])
def test_clean_exchange_raises_nothing(kernel):
    stays_silent(lambda **options: is_right(async_kernels.exchange(kernel, **options)))


def is_right(wrong: float, least: float = 1) -> None:
    assert wrong < least


def test_clean_small_kernels_raise_nothing():
    stays_silent(lambda **options: is_right(async_kernels.copy("none", **options)))
    stays_silent(lambda **options: is_right(async_kernels.product_of_fragments("none", **options), 1e-5))
    stays_silent(lambda **options: is_right(async_kernels.pair("none", **options)))


def test_clean_boxes_raise_nothing():
    matrix, box = np.ones((40, 40), np.float32), np.ones((16, 16), np.float32)
    stays_silent(lambda **options: async_kernels.load_box(matrix, 30, -3, **options))
    stays_silent(lambda **options: async_kernels.store_box(matrix, box, 30, -3, **options))


@pytest.mark.parametrize(("x", "y"), [(0, 0), (4, 3), (-5, 2), (20, -7), (30, 40), (100, 100), (-16, 0)])
def test_boxes_leave_the_tensor(x, y):
    """What lies outside reads as zero and is not written."""
    matrix = np.random.default_rng(0).standard_normal((45, 36)).astype(np.float32)
    padded = np.zeros((300, 300), np.float32)
    padded[100:145, 100:136] = matrix
    assert (async_kernels.load_box(matrix, x, y) == padded[100 + y : 116 + y, 100 + x : 116 + x]).all()

    box = np.random.default_rng(1).standard_normal((16, 16)).astype(np.float32)
    padded[100 + y : 116 + y, 100 + x : 116 + x] = box
    async_kernels.store_box(matrix, box, x, y)
    assert (matrix == padded[100:145, 100:136]).all()


def test_a_box_outside_its_buffer_is_found():
    """The map may promise more rows than the buffer has."""
    matrix = np.zeros((16, 16), np.float32)
    with Simulator() as sim:
        sim.buffer(matrix)
        described = tensor_map(matrix, (16, 32), (64,), (16, 16), swizzle=0)
        module = compile(async_kernels.RULES, arch="90a")
        sim.launch(module, "box", 1, 64, [described, np.zeros(256, np.float32), 0, 8])
        with pytest.raises(SimulatorError, match="GLOBAL_OOB"):
            sim.run()


@pytest.mark.parametrize("edit", [8, 40, 127])
def test_an_edited_tensor_map_is_found(edit):
    matrix = np.zeros((32, 32), np.float32)
    with Simulator() as sim:
        sim.buffer(matrix)
        described = bytearray(tensor_map(matrix, (32, 32), (128,), (16, 16), swizzle=0))
        described[edit] ^= 1
        module = compile(async_kernels.RULES, arch="90a")
        sim.launch(module, "box", 1, 64, [bytes(described), np.zeros(256, np.float32), 0, 0])
        if edit == 127:  # beyond what a map uses
            sim.run()
            return
        with pytest.raises(SimulatorError, match="TENSOR_MAP"):
            sim.run()


def test_a_tensor_map_of_another_rank_is_found():
    matrix = np.zeros(1024, np.float32)
    with Simulator() as sim:
        sim.buffer(matrix)
        described = tensor_map(matrix, (1024,), (), (256,), swizzle=0)
        module = compile(async_kernels.RULES, arch="90a")
        sim.launch(module, "box", 1, 64, [described, np.zeros(256, np.float32), 0, 0])
        with pytest.raises(SimulatorError, match="has 1 dimensions, the instruction 2"):
            sim.run()
