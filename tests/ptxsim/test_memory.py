"""Memory: every space and width works, and every access that must not be made is refused with its reason."""

import functools

import numpy as np
import pytest
from checks import SEEDS, is_reported, stays_silent
from ptxsim import In, InOut, Out, Simulator, SimulatorError, compile

SOURCE = "tests/ptxsim/kernels/memory.cu"


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

    def copy(given: int, **options: int) -> None:
        y = np.zeros(32 * size, np.int8)
        launch(f"copy_some_{size}", [In(x), Out(y), given], **options)
        expected = x.reshape(32, size) * (np.arange(size) < given)
        np.testing.assert_array_equal(y.reshape(32, size), expected)

    for given in (0, 1, size - 1, size):
        stays_silent(functools.partial(copy, given))
    is_reported(functools.partial(copy, size + 1), "CP_ASYNC", "exceeds the copy size")


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


def pair(*values: int):
    return In(np.array(values, np.int32))


# Kernel: the kind of the error and a part of its text; arguments that break the rule and that keep it.
RULES = {
    "read_past_end": (
        "GLOBAL_OOB",
        "at offset 32 of the nearest buffer",
        lambda: [In(ints(8)), Out(ints(8)), 9],
        lambda: [In(ints(8)), Out(ints(8)), 8],
    ),
    "write_past_end": (
        "GLOBAL_OOB",
        "has 256 bytes",
        lambda: [Out(ints(64)), 40],
        lambda: [Out(ints(64)), 32],
    ),
    "write_before_start": (
        "GLOBAL_OOB",
        "offset -4",
        lambda: [Out(ints(64)), -1],
        lambda: [Out(ints(64)), 0],
    ),
    "write_input": ("GLOBAL_RO", "may not be written", lambda: [In(ints(64))], lambda: [InOut(ints(64))]),
    "wild": ("GLOBAL_OOB", "nearest buffer", lambda: [Out(ints(64)), 1 << 40], lambda: [Out(ints(64)), 0]),
    "null_read": (
        "GLOBAL_OOB",
        "read of 4 bytes at 0",
        lambda: [0, Out(ints(64))],
        lambda: [In(ints(1)), Out(ints(64))],
    ),
    "misaligned": (
        "MISALIGNED",
        "4 bytes at address",
        lambda: [In(aligned(ints(4))), Out(ints(4)), 2],
        lambda: [In(aligned(ints(4))), Out(ints(4)), 4],
    ),
    "misaligned_vector": (
        "MISALIGNED",
        "16 bytes",
        lambda: [In(aligned(ints(8))), Out(aligned(ints(4))), 1],
        lambda: [In(aligned(ints(8))), Out(aligned(ints(4))), 4],
    ),
    "read_uninitialised": (
        "UNINIT",
        "offset 4 of a buffer of 16 bytes",
        lambda: [Out(ints(4))],
        lambda: [InOut(ints(4))],
    ),
    "shared_past_end": (
        "SHARED_OOB",
        "at offset 32 of the CTA's 32 bytes",
        lambda: [Out(ints(4)), 8],
        lambda: [Out(ints(4)), 7],
    ),
    "shared_uninitialised": (
        "UNINIT",
        "lane 31 reads shared offset 124",
        lambda: [Out(ints(32)), 31],
        lambda: [Out(ints(32)), 32],
    ),
    "shared_address_zero": (
        "SHARED_OOB",
        "below the first variable",
        lambda: [Out(ints(4)), 0],
        lambda: [Out(ints(4)), 1],
    ),
    "local_uninitialised": (
        "UNINIT",
        "local offset 36",
        lambda: [pair(0, 9), Out(ints(32))],
        lambda: [pair(0, 7), Out(ints(32))],
    ),
    "local_past_end": (
        "LOCAL_OOB",
        "of 64 bytes",
        lambda: [pair(0, 99), Out(ints(32))],
        lambda: [pair(0, 15), Out(ints(32))],
    ),
    "register_uninitialised": (
        "UNINIT",
        "never wrote",
        lambda: [Out(ints(32)), 0],
        lambda: [Out(ints(32)), 1],
    ),
    "divide": ("UNINIT", "never wrote", lambda: [pair(0), Out(ints(1))], lambda: [pair(7), Out(ints(1))]),
    "endless": ("TIMEOUT", "endless", lambda: [pair(0), Out(ints(1))], lambda: [pair(1), Out(ints(1))]),
    "assertion": (
        "ASSERT",
        "x must be zero",
        lambda: [In(np.eye(32, dtype=np.int32)[7]), Out(ints(32))],
        lambda: [In(ints(32)), Out(ints(32))],
    ),
    "trap": ("TRAP", "", lambda: [Out(ints(32)), 3], lambda: [Out(ints(32)), 99]),
}


@pytest.mark.parametrize("kernel", RULES)
def test_a_wrong_access_is_refused(kernel: str) -> None:
    kind, part, broken, _ = RULES[kernel]
    where = f"[kernel {kernel} cta (0,0,0) warp 0"
    is_reported(
        lambda **options: launch(kernel, broken(), max_inst=20_000, **options),
        kind,
        part,
        where,
        "at PTX line",
    )


@pytest.mark.parametrize("kernel", RULES)
def test_a_right_access_is_not(kernel: str) -> None:
    *_, kept = RULES[kernel]
    stays_silent(lambda **options: launch(kernel, kept(), max_inst=20_000, **options))


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
    launch("register_uninitialised", [Out(y), 0], registers=0)
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
