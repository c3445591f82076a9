"""Lanes and warps that act together, and every misuse that must be reported."""

import functools

import numpy as np
import pytest
from checks import SCHEDULES, is_reported, stays_silent
from ptxsim import In, InOut, Out, Simulator, compile

SOURCE = "tests/ptxsim/kernels/collectives.cu"
LANE = np.arange(32)


def launch(
    kernel: str, args: list, threads: int = 32, grid: int = 1, arch: str = "80", **options: int
) -> None:
    with Simulator(**options) as sim:
        sim.launch(compile(SOURCE, arch=arch), kernel, grid, threads, args)
        sim.run()


def test_shuffles() -> None:
    x = np.random.default_rng(0).integers(-99, 99, 32).astype(np.int32)
    source = np.random.default_rng(1).integers(0, 32, 32).astype(np.int32)
    expected = np.stack(
        [
            x[source],
            np.where(LANE >= 3, x[LANE - 3], x),
            np.where(LANE + 5 < 32, x[(LANE + 5) % 32], x),
            x[LANE ^ 9],
            x[LANE // 8 * 8 + 2],
            np.where(LANE % 4 >= 1, x[LANE - 1], x),
            np.where(LANE % 16 + 1 < 16, x[(LANE + 1) % 32], x),
            np.where(LANE % 3 == 0, x, -1),
        ]
    )
    for options in SCHEDULES:
        y = np.zeros((8, 32), np.int32)
        launch("shuffles", [In(x), In(source), Out(y)], **options)
        np.testing.assert_array_equal(y, expected)


def ballot(lanes: np.ndarray) -> int:
    return sum(1 << int(lane) for lane in np.flatnonzero(lanes))


def test_votes_matches_and_reductions() -> None:
    x = np.random.default_rng(2).integers(-99, 99, 32).astype(np.int32)
    peers = np.array([ballot((x & 3) == v) for v in x & 3])
    odd = (LANE & 1).astype(bool)
    high = x >> 30
    expected = np.zeros((12, 32), np.uint32)
    expected[0] = ballot(x > 0)
    expected[1] = (x > 0).all()
    expected[2] = (x > 0).any()
    expected[3] = peers
    expected[4] = 0xFFFFFFFF if (high == high[0]).all() else 0
    expected[5] = (high == high[0]).all()
    expected[6] = np.uint32(int(x.sum()) % 2**32)
    expected[7] = np.int32(x.min()).view(np.uint32)
    expected[8] = x.view(np.uint32).max()
    expected[9] = np.bitwise_xor.reduce(x.view(np.uint32))
    expected[10] = np.where(odd, ballot(odd & (x > 0)), 0)
    expected[11] = [bin(int(p)).count("1") for p in peers]
    for options in SCHEDULES:
        y = np.zeros((12, 32), np.uint32)
        launch("votes", [In(x), Out(y)], **options)
        np.testing.assert_array_equal(y, expected)


def test_softmax_by_shuffles() -> None:
    x = np.random.default_rng(3).standard_normal((3, 96)).astype(np.float32)
    wide = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    for options in SCHEDULES:
        y = np.zeros_like(x)
        launch("softmax", [In(x), Out(y), 3], grid=3, **options)
        np.testing.assert_allclose(y, wide / wide.sum(1, keepdims=True), rtol=2e-6)


def test_diverged_lanes_meet_again() -> None:
    x = np.random.default_rng(4).integers(1, 99, 32).astype(np.int32)
    steps = []
    for value in x.tolist():
        count = 0
        while value != 1:
            value = 3 * value + 1 if value & 1 else value // 2
            count += 1
        steps.append(count)
    for options in SCHEDULES:
        y, meetings = np.zeros(32, np.int32), np.zeros(32, np.int32)
        launch("collatz", [In(x), Out(y), Out(meetings)], **options)
        np.testing.assert_array_equal(y, steps)
        np.testing.assert_array_equal(meetings, max(steps))


def test_barriers_that_reduce() -> None:
    x = np.random.default_rng(5).integers(0, 255, 96).astype(np.int32)
    expected = int((x & 1).sum()) * 4 + 2 + int((x > 250).any())
    for options in SCHEDULES:
        y = np.zeros(96, np.int32)
        launch("barrier_reductions", [In(x), Out(y)], threads=96, **options)
        np.testing.assert_array_equal(y, expected)


def test_named_barriers_are_independent() -> None:
    x = np.arange(128, dtype=np.int32)
    rounds = np.where(np.arange(128) < 64, 3, 5)
    for options in SCHEDULES:
        y = np.zeros(128, np.int32)
        launch("two_barriers", [In(x), Out(y)], threads=128, **options)
        np.testing.assert_array_equal(y, (np.arange(128) ^ 33) * rounds + rounds * (rounds - 1) // 2)


X = np.arange(128, dtype=np.int32)
# Kernel, threads; an argument that is misuse and one that is not; kind of the error, a part of its text.
RULES = [
    ("shuffle_from_absent", 32, 16, 8, "SHFL", "which does not take part"),
    ("shuffle_diverged", 32, 16, 32, "DIVERGED", "must execute this with them"),
    ("mask_without_self", 32, 0xFFFF, 0xFFFFFFFF, "SYNC_MASK", "member mask 0000ffff, which omits it"),
    ("barrier_diverged", 32, 1, 32, "DIVERGED", "cannot reach it"),
    ("barrier_after_exit", 64, 20, 64, "BARRIER", "exited"),
    ("barrier_after_exit", 64, 32, 64, "BARRIER", "32 threads of the CTA have exited without it"),
    ("barrier_counts_differ", 96, 64, 96, "BARRIER", "now named for"),
    ("barrier_of", 64, 48, 64, "BARRIER", "multiple of 32"),
    ("barrier_of", 96, 64, 96, "DEADLOCK", "barrier 1 (32 of 64 threads have come)"),
    ("arrive_without_wait", 96, 96, 32, "BARRIER", "32 of 96 threads arrived at barrier 1"),
    ("wait_without_arrive", 96, 96, 32, "DEADLOCK", "barrier 1 (32 of 96 threads have come)"),
]
IDS = [f"{kernel}-{misuse}" for kernel, _, misuse, *_ in RULES]


def run(kernel: str, threads: int, argument: int, **options: int) -> None:
    reads = len(compile(SOURCE).kernels[kernel]) == 3
    arguments = [*([In(X)] if reads else []), InOut(np.zeros(128, np.int32)), argument]
    launch(kernel, arguments, threads=threads, **options)


@pytest.mark.parametrize(("kernel", "threads", "misuse", "right", "kind", "part"), RULES, ids=IDS)
def test_misuse_is_reported(kernel: str, threads: int, misuse: int, right: int, kind: str, part: str) -> None:
    is_reported(functools.partial(run, kernel, threads, misuse), kind, part)
    stays_silent(functools.partial(run, kernel, threads, right))
