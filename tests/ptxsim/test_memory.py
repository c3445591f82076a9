"""Memory: every space and width works, and every access that must not be made is refused with its reason."""

import numpy as np
import pytest
from ptxsim import In, InOut, Out, Simulator, SimulatorError, compile

SOURCE = "tests/ptxsim/kernels/memory.cu"
SEEDS = range(8)


def launch(
    kernel: str, args: list, threads: int | tuple = 32, grid: int | tuple = 1, shared: int = 0, **options: int
):
    with Simulator(**options) as sim:
        sim.launch(compile(SOURCE), kernel, grid, threads, args, shared=shared)
        return sim.run()


@pytest.mark.parametrize(
    ("kernel", "dtype", "lanes"),
    [
        ("copy_bytes", np.uint8, 1),
        ("copy_halves", np.uint16, 1),
        ("copy_words", np.uint32, 1),
        ("copy_pairs", np.uint32, 2),
        ("copy_quads", np.uint32, 4),
    ],
)
def test_widths(kernel: str, dtype: type, lanes: int) -> None:
    n = 777
    x = np.random.default_rng(0).integers(0, 255, n * lanes).astype(dtype)
    storage = np.zeros(n * lanes + 16 // x.itemsize, dtype)
    start = -storage.ctypes.data % 16 // x.itemsize
    for seed in SEEDS:
        y = storage[start : start + n * lanes]
        launch(kernel, [In(aligned(x)), Out(y), n], threads=128, grid=3, seed=seed)
        np.testing.assert_array_equal(y, x)


def aligned(x: np.ndarray, to: int = 16) -> np.ndarray:
    storage = np.zeros(x.size + to // x.itemsize, x.dtype)
    start = -storage.ctypes.data % to // x.itemsize
    view = storage[start : start + x.size]
    view[:] = x.reshape(-1)
    return view


def test_signed_loads_extend() -> None:
    x = np.array([-128, -1, 0, 1, 127], np.int8)
    y = np.zeros(5, np.int64)
    launch("widen_signed", [In(x), Out(y), 5])
    np.testing.assert_array_equal(y, x)


def test_transpose_through_dynamic_shared_memory() -> None:
    x = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
    for seed in SEEDS:
        y = np.zeros((96, 64), np.float32)
        launch("transpose", [In(x), Out(y), 64, 96], (32, 8), (3, 2), shared=32 * 33 * 4, seed=seed)
        np.testing.assert_array_equal(y, x.T)


def test_local_memory() -> None:
    x, y = np.arange(32, dtype=np.int32) * 5, np.zeros(32, np.int32)
    launch("local_array", [In(x), Out(y)])
    np.testing.assert_array_equal(y, (x & 15) ** 2 + np.arange(32))


def test_variables_of_the_module() -> None:
    y = np.zeros(32, np.int32)
    launch("variables", [Out(y)])
    lane = np.arange(32)
    np.testing.assert_array_equal(
        y, np.array([2, 3, 5, 7])[lane & 3] * np.array([11, 13, 17, 19])[lane >> 2 & 3]
    )


@pytest.mark.parametrize("which", [0, 1, 2])
def test_generic_addresses(which: int) -> None:
    x, y = np.arange(32, dtype=np.int32) * 3, np.zeros(32, np.int32)
    launch("generic", [In(x), Out(y), which])
    lane = np.arange(32)
    np.testing.assert_array_equal(y, [x, 100 + lane, np.where(lane & 1, which, lane)][which])


@pytest.mark.parametrize("size", [4, 8, 16])
def test_asynchronous_copies_fill_with_zeros(size: int) -> None:
    x = aligned(np.random.default_rng(0).integers(1, 127, 32 * size).astype(np.int8))
    for given in (0, 1, size - 1, size):
        for seed in SEEDS:
            y = np.zeros(32 * size, np.int8)
            launch(f"copy_some_{size}", [In(x), Out(y), given], seed=seed)
            expected = x.reshape(32, size) * (np.arange(size) < given)
            np.testing.assert_array_equal(y.reshape(32, size), expected)
    with pytest.raises(SimulatorError, match=r"CP_ASYNC.*exceeds the copy size"):
        launch(f"copy_some_{size}", [In(x), Out(np.zeros(32 * size, np.int8)), size + 1])


def test_atomics() -> None:
    x = np.random.default_rng(1).integers(-1000, 1000, 128).astype(np.int32)
    for seed in SEEDS:
        y = np.array([0, 10_000, -10_000, 0, -1, 0, 0, 0], np.int32)
        z, w = np.zeros(1, np.float32), np.zeros(1, np.uint64)
        launch("atomics", [In(x), InOut(y), InOut(z), InOut(w)], threads=64, grid=2, seed=seed)
        expected = [
            x.sum(),
            x.min(),
            x.max(),
            np.bitwise_or.reduce(x),
            np.bitwise_and.reduce(x),
            np.bitwise_xor.reduce(x),
            128 % 10,
            256,
        ]
        np.testing.assert_array_equal(y, expected)
        assert z[0] == (x & 7).sum()
        assert w[0] == int(x.astype(np.int64).sum()) % 2**64


def test_the_order_of_atomics_depends_on_the_seed() -> None:
    orders = set()
    for seed in SEEDS:
        y, counter = np.zeros(32, np.int32), np.zeros(1, np.int32)
        launch("tickets", [InOut(counter), Out(y)], seed=seed)
        assert sorted(y) == list(range(32))
        orders.add(tuple(y))
    assert len(orders) == len(SEEDS)


def test_ctas_start_in_any_order() -> None:
    first = set()
    for seed in SEEDS:
        y, counter = np.zeros(200, np.int32), np.zeros(1, np.int32)
        launch("cta_tickets", [InOut(counter), Out(y)], grid=200, seed=seed)
        assert sorted(y) == list(range(200))
        first.add(int(y.argmin()))
    assert max(first) > 32


def test_the_same_seed_gives_the_same_run() -> None:
    runs = []
    for _ in range(2):
        y, counter = np.zeros(32, np.int32), np.zeros(1, np.int32)
        launch("tickets", [InOut(counter), Out(y)], seed=5)
        runs.append(tuple(y))
    assert runs[0] == runs[1]


def ints(n: int) -> np.ndarray:
    return np.zeros(n, np.int32)


# kernel: arguments, kind of the error, a part of its text
WRONG = {
    "read_past_end": (
        lambda: [In(ints(8)), Out(ints(8)), 8],
        "GLOBAL_OOB",
        "at offset 32 of the nearest buffer",
    ),
    "write_past_end": (lambda: [Out(ints(64)), 40], "GLOBAL_OOB", "has 256 bytes"),
    "write_before_start": (lambda: [Out(ints(64))], "GLOBAL_OOB", "offset -4"),
    "write_input": (lambda: [In(ints(64))], "GLOBAL_RO", "may not be written"),
    "wild": (lambda: [Out(ints(64))], "GLOBAL_OOB", "nearest buffer"),
    "null_read": (lambda: [Out(ints(64))], "GLOBAL_OOB", "read of 4 bytes at 0"),
    "misaligned": (lambda: [In(aligned(ints(4))), Out(ints(4))], "MISALIGNED", "4 bytes at address"),
    "misaligned_vector": (lambda: [In(aligned(ints(8))), Out(aligned(ints(4)))], "MISALIGNED", "16 bytes"),
    "read_uninitialised": (lambda: [Out(ints(4))], "UNINIT", "offset 4 of a buffer of 16 bytes"),
    "shared_past_end": (lambda: [Out(ints(4))], "SHARED_OOB", "at offset 32 of the CTA's 32 bytes"),
    "shared_uninitialised": (lambda: [Out(ints(32))], "UNINIT", "lane 7 reads shared offset 28"),
    "shared_address_zero": (lambda: [Out(ints(4))], "SHARED_OOB", "below the first variable"),
    "local_uninitialised": (
        lambda: [In(np.array([0, 9], np.int32)), Out(ints(32))],
        "UNINIT",
        "local offset 36",
    ),
    "local_past_end": (lambda: [In(np.array([0, 99], np.int32)), Out(ints(32))], "LOCAL_OOB", "of 64 bytes"),
    "register_uninitialised": (lambda: [Out(ints(32))], "UNINIT", "never wrote"),
    "divide_by_zero": (lambda: [In(ints(1)), Out(ints(1))], "UNINIT", "never wrote"),
    "endless": (lambda: [In(ints(1)), Out(ints(1))], "TIMEOUT", "endless"),
    "assertion": (lambda: [In(np.eye(32, dtype=np.int32)[7]), Out(ints(32))], "ASSERT", "x must be zero"),
    "trap": (lambda: [Out(ints(32))], "TRAP", ""),
}


@pytest.mark.parametrize("kernel", WRONG)
def test_a_wrong_access_is_refused(kernel: str) -> None:
    arguments, kind, part = WRONG[kernel]
    for seed in SEEDS:
        with pytest.raises(SimulatorError) as error:
            launch(kernel, arguments(), seed=seed, max_inst=20_000)
        text = str(error.value)
        assert error.value.kind == kind, text
        assert part in text
        assert f"[kernel {kernel} cta (0,0,0) warp 0" in text
        assert "at PTX line" in text


def test_moving_an_undefined_register_is_no_fault() -> None:
    y = ints(32)
    launch("register_moved_uninitialised", [Out(y)])
    np.testing.assert_array_equal(y, 1)


def test_dividing_by_zero_is_no_fault_unless_the_quotient_is_used() -> None:
    for divisor, expected in ((0, -1), (3, 2)):
        y = ints(1)
        launch("guarded_division", [In(np.array([divisor], np.int32)), Out(y)], threads=1)
        assert y[0] == expected


def test_undefined_registers_are_zero_when_not_looked_for() -> None:
    y = ints(32)
    launch("register_uninitialised", [Out(y)], registers=0)
    np.testing.assert_array_equal(y, 1)


def test_what_a_kernel_leaves_unwritten_is_found() -> None:
    y = ints(32)
    with Simulator() as sim:
        sim.launch(compile(SOURCE), "leave_unwritten", 1, 32, [Out(y), 20])
        sim.run()
        assert sim.unwritten(y) == 80
        sim.launch(compile(SOURCE), "leave_unwritten", 1, 32, [Out(y), 32])
        sim.run()
        assert sim.unwritten(y) is None


def test_views_of_one_allocation_have_their_own_bounds() -> None:
    storage = np.zeros(96, np.int32)
    left, right = storage[:32], storage[64:]
    with Simulator() as sim:
        sim.launch(compile(SOURCE), "copy_words", 1, 32, [In(left), Out(right), 32])
        sim.run()
    with Simulator() as sim:
        sim.launch(compile(SOURCE), "copy_words", 1, 64, [In(left), Out(right), 33])
        with pytest.raises(SimulatorError, match="GLOBAL_OOB"):
            sim.run()


def test_overlapping_views_keep_what_each_permits() -> None:
    storage = np.arange(64, dtype=np.int32)
    with Simulator() as sim:  # the first half may be read, the second half written, by two views that overlap
        sim.buffer(In(storage[:48]))
        sim.launch(compile(SOURCE), "copy_words", 1, 32, [In(storage[:32]), InOut(storage[32:]), 32])
        sim.run()
    np.testing.assert_array_equal(storage, np.tile(np.arange(32), 2))


def test_an_unknown_option_is_refused() -> None:
    for options in ({"no_such_option": 1}, {"races": 2}, {"quantum": 0}):
        with pytest.raises(ValueError, match="takes no option"), Simulator(**options):
            pass
