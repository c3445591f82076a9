"""Races: each faulty kernel is caught on every seed, its clean twin raises nothing in 60 randomised runs."""

import functools
from collections.abc import Callable

import numpy as np
import pytest
from checks import is_reported, stays_silent
from ptxsim import In, InOut, Out, Simulator, SimulatorError, compile

SOURCE = "tests/ptxsim/kernels/races.cu"
X = np.arange(256, dtype=np.int32) * 7 + 3

Case = Callable[..., None]


def one_cta(threads: int, outputs: int, expected: Callable[[np.ndarray], np.ndarray]) -> Case:
    def run(kernel: str, **options: int) -> None:
        y = np.zeros(outputs, np.int32)
        with Simulator(**options) as sim:
            sim.launch(compile(SOURCE), kernel, 1, threads, [In(X), Out(y)])
            sim.run()
        np.testing.assert_array_equal(y, expected(X))

    return run


def shared_rounds(x: np.ndarray) -> np.ndarray:
    return 4 * np.roll(x[:128], -32) + 6


def bytes_of(x: np.ndarray) -> np.ndarray:
    return x[:128] % 256


def accumulate(kernel: str, **options: int) -> None:
    y = np.zeros(64, np.int32)
    with Simulator(**options) as sim:
        sim.launch(compile(SOURCE), kernel, 2, 64, [In(X), InOut(y)])
        sim.run()
    np.testing.assert_array_equal(y, X[:64] + X[64:128])


def last(kernel: str, **options: int) -> None:
    y, ticket, partial = np.zeros(64, np.int32), np.zeros(1, np.uint32), np.zeros(256, np.int32)
    with Simulator(**options) as sim:
        sim.launch(compile(SOURCE), kernel, 4, 64, [In(X), Out(partial), InOut(ticket), Out(y)])
        sim.run()
    np.testing.assert_array_equal(y, 2 * X.reshape(4, 64).sum(0))


def message(kernel: str, **options: int) -> None:
    y, flag, mailbox = np.zeros(32, np.int32), np.zeros(1, np.int32), np.zeros(32, np.int32)
    with Simulator(max_inst=200_000, **options) as sim:
        args = [In(X), Out(mailbox), InOut(flag), Out(y)]
        sim.launch(compile(SOURCE), kernel, 2, 32, args)
        sim.run()
    np.testing.assert_array_equal(y, X[:32])


def message_between_ranks(kernel: str, **options: int) -> None:
    y, flag, mailbox = np.zeros(32, np.int32), np.zeros(1, np.int32), np.zeros(32, np.int32)
    with Simulator(devices=2, max_inst=200_000, **options) as sim:
        for rank in range(2):
            args = [In(X), Out(mailbox), InOut(flag), Out(y), int(rank == 0)]
            sim.launch(compile(SOURCE), kernel + "_ranks", 1, 32, args, rank=rank)
        sim.run()
    np.testing.assert_array_equal(y, X[:32])


def total(kernel: str, **options: int) -> None:
    y, ticket, total = np.zeros(1, np.int32), np.zeros(1, np.uint32), np.zeros(1, np.int32)
    with Simulator(**options) as sim:
        sim.launch(compile(SOURCE), kernel, 5, 32, [In(X), InOut(total), InOut(ticket), Out(y)])
        sim.run()
    assert y[0] == X[:5].sum()


def lock(kernel: str, **options: int) -> None:
    y, flag = np.zeros(1, np.int32), np.zeros(1, np.int32)
    with Simulator(max_inst=1_000_000, **options) as sim:
        sim.launch(compile(SOURCE), kernel, 5, 32, [InOut(flag), InOut(y)])
        sim.run()
    assert y[0] == 5


def counter(kernel: str, **options: int) -> None:
    y = np.zeros(1, np.int32)
    with Simulator(**options) as sim:
        sim.launch(compile(SOURCE), kernel, 3, 32, [InOut(y)])
        sim.run()
    assert y[0] == 96


def non_coherent(kernel: str, **options: int) -> None:
    x, y = np.zeros(64, np.int32), np.zeros(64, np.int32)
    with Simulator(**options) as sim:
        sim.launch(compile(SOURCE), kernel, 1, 64, [InOut(x), Out(y)])
        sim.run()
    np.testing.assert_array_equal(y, np.arange(64) ^ 1)


def in_place(kernel: str, **options: int) -> None:
    x = np.arange(64, dtype=np.int32)
    with Simulator(**options) as sim:
        sim.launch(compile(SOURCE), kernel, 1, 64, [InOut(x)])
        sim.run()
    np.testing.assert_array_equal(x, np.arange(64) + 1)


def copies(kernel: str, **options: int) -> None:
    x = np.arange(512, dtype=np.int32).reshape(128, 4)
    y, scratch = np.zeros_like(x), np.zeros_like(x)
    with Simulator(**options) as sim:
        sim.launch(compile(SOURCE), kernel, 1, 64, [In(x), InOut(scratch), Out(y)])
        sim.run()
    np.testing.assert_array_equal(y[:64], x[63::-1])
    np.testing.assert_array_equal(y[64:], x[:63:-1])


reverse = one_cta(128, 128, lambda x: x[127::-1])
rounds = one_cta(128, 128, shared_rounds)
lanes = one_cta(32, 32, lambda x: x[np.arange(32) ^ 1])
halves = one_cta(32, 32, lambda x: x[:32] + np.concatenate([np.zeros(16, np.int32), x[:16]]))
one_word = one_cta(32, 32, lambda x: np.full(32, x[0]))
histogram = one_cta(128, 8, lambda x: np.bincount(x[:128] & 7, minlength=8))
shared_flag = one_cta(64, 32, lambda x: x[:32])
byte_exact = one_cta(128, 128, bytes_of)
named = one_cta(128, 64, lambda x: x[:64])

CASES: dict[str, tuple[Case, str, dict[str, str]]] = {
    "reverse": (reverse, "reverse_clean", {"reverse_fault": "RACE|UNINIT"}),
    "rounds": (rounds, "rounds_clean", {"rounds_fault": "RACE"}),
    "lanes": (lanes, "lanes_clean", {"lanes_fault": "RACE"}),
    "halves": (halves, "halves_clean", {"halves_fault": "RACE"}),
    "one_word": (one_word, "one_word_clean", {"one_word_fault": "RACE"}),
    "histogram": (histogram, "histogram_clean", {"histogram_fault": "RACE"}),
    "bytes": (byte_exact, "bytes_clean", {"bytes_fault": "RACE|UNINIT"}),
    "named": (named, "named_clean", {"named_fault": "RACE|UNINIT"}),
    "accumulate": (accumulate, "accumulate_clean", {"accumulate_fault": "GLOBAL_RACE"}),
    "last": (
        last,
        "last_clean",
        dict.fromkeys(["last_no_fence", "last_no_barrier", "last_block_scope"], "GLOBAL_RACE|UNINIT"),
    ),
    "message": (
        message,
        "message_clean",
        dict.fromkeys(
            [
                "message_relaxed_store",
                "message_relaxed_load",
                "message_weak_store",
                "message_cta_release",
                "message_cta_acquire",
                "message_no_warp_sync_before",
                "message_no_warp_sync_after",
            ],
            "GLOBAL_RACE|UNINIT",
        ),
    ),
    "fences": (message, "message_fences", {}),
    "gpu_scope": (message, "message_gpu_scope", {}),
    "ranks": (
        message_between_ranks,
        "message_clean",
        dict.fromkeys(["message_gpu_release", "message_gpu_acquire", "message_gpu_scope"], "GLOBAL_RACE"),
    ),
    "fences_between_ranks": (message_between_ranks, "message_fences", {}),
    "total": (total, "total_clean", {"total_fault": "GLOBAL_RACE"}),
    "lock": (lock, "lock_clean", {"lock_fault": "GLOBAL_RACE"}),
    "shared_flag": (shared_flag, "shared_flag_clean", {"shared_flag_fault": "RACE"}),
    "counter": (counter, "counter_clean", {"counter_fault": "GLOBAL_RACE"}),
    "non_coherent": (non_coherent, "non_coherent_clean", {"non_coherent_fault": "NON_COHERENT"}),
    "in_place": (in_place, "in_place_clean", {"in_place_fault": "NON_COHERENT"}),
    "copies": (
        copies,
        "copies_clean",
        {
            "copies_no_wait": "RACE|ASYNC_RACE",
            "copies_wait_too_few": "RACE|ASYNC_RACE",
            "copies_no_barrier": "RACE|ASYNC_RACE|UNINIT",
            "copies_exit_early": "ASYNC_EXIT",
            "copies_overwrite": "RACE|ASYNC_RACE",
            "copies_source_changed": "GLOBAL_RACE",
        },
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_clean_kernel_raises_nothing(name: str) -> None:
    run, clean, _ = CASES[name]
    stays_silent(functools.partial(run, clean))


FAULTS = [(name, kernel) for name, (_, _, faults) in CASES.items() for kernel in faults]


@pytest.mark.parametrize(("name", "kernel"), FAULTS)
def test_a_fault_is_caught_on_every_seed(name: str, kernel: str) -> None:
    run, _, faults = CASES[name]
    is_reported(functools.partial(run, kernel), faults[kernel].split("|"), "PTX line", kernel)


def chain(streams: tuple[int, int], **options: int) -> None:
    middle, y = np.zeros(64, np.int32), np.zeros(64, np.int32)
    with Simulator(**options) as sim:
        sim.launch(compile(SOURCE), "increment", 1, 64, [In(X), InOut(middle)], stream=streams[0])
        sim.launch(compile(SOURCE), "increment", 1, 64, [InOut(middle), Out(y)], stream=streams[1])
        sim.run()
    np.testing.assert_array_equal(y, X[:64] + 2)


def test_launches_on_one_stream_are_ordered() -> None:
    stays_silent(functools.partial(chain, (1, 1)))


def test_launches_on_two_streams_race() -> None:
    is_reported(functools.partial(chain, (1, 2)), "GLOBAL_RACE", "launch")


def test_the_report_names_both_sides() -> None:
    with pytest.raises(SimulatorError) as error:
        reverse("reverse_fault", seed=1)
    text = str(error.value)
    if error.value.kind == "RACE":
        assert "of cta (0,0,0)" in text
        assert "not ordered after the write (weak) by" in text
    assert "[kernel reverse_fault cta (0,0,0) warp " in text


def test_no_races_are_reported_when_they_are_not_looked_for() -> None:
    x = np.arange(64, dtype=np.int32)
    with Simulator(races=0) as sim:
        sim.launch(compile(SOURCE), "in_place_fault", 1, 64, [InOut(x)])
        sim.run()
    np.testing.assert_array_equal(x, np.arange(64) + 1)
