"""Counters against what can be told by hand, and that they do not depend on the schedule."""

from typing import Any

import numpy as np
import pytest
from ptxsim import In, InOut, Out, Simulator, compile

SOURCE = "tests/ptxsim/kernels/counters.cu"


def aligned(count: int) -> np.ndarray:
    storage = np.zeros(count + 32, np.float32)
    start = -storage.ctypes.data % 128 // 4
    return storage[start : start + count]


def count(kernel: str, args: list, threads: int = 32, **options: int) -> dict[str, Any]:
    with Simulator(**options) as sim:
        sim.launch(compile(SOURCE), kernel, 1, threads, args)
        return sim.run()[0]


@pytest.mark.parametrize(("stride", "sectors"), [(1, 4), (2, 8), (4, 16), (8, 32), (64, 32), (0, 1)])
def test_sectors_of_strided_loads(stride: int, sectors: int) -> None:
    counters = count("strided", [In(aligned(32 * 64)), Out(aligned(32)), stride])
    assert counters["global_load"] == {"requests": 1, "sectors": sectors, "bytes": 128}
    assert counters["global_store"] == {"requests": 1, "sectors": 4, "bytes": 128}


def test_a_misaligned_row_takes_one_more_sector() -> None:
    x, y = aligned(64), aligned(64)
    counters = count("strided", [In(x[3:35]), Out(y[1:33]), 1])
    assert counters["global_load"]["sectors"] == 5
    assert counters["global_store"]["sectors"] == 5


def test_vector_accesses() -> None:
    counters = count("vectors", [In(aligned(128)), Out(aligned(128))])
    assert counters["global_load"] == {"requests": 1, "sectors": 16, "bytes": 512}
    assert counters["global_store"] == {"requests": 1, "sectors": 16, "bytes": 512}


def test_inactive_lanes_do_not_count() -> None:
    counters = count("sparse", [In(aligned(32)), InOut(aligned(32)), 8])
    assert counters["global_load"] == {"requests": 1, "sectors": 4, "bytes": 16}


def test_bank_conflicts() -> None:
    conflicting, spread = count("tile_32", [Out(aligned(32))]), count("tile_33", [Out(aligned(32))])
    assert conflicting["shared_store"] == {"requests": 1, "wavefronts": 32, "ideal": 1, "bytes": 128}
    assert spread["shared_store"] == {"requests": 1, "wavefronts": 1, "ideal": 1, "bytes": 128}
    # Two words of one bank; two words of two banks, each read by 16 lanes.
    assert conflicting["shared_load"]["wavefronts"] == 2
    assert spread["shared_load"]["wavefronts"] == 1


def test_shared_vectors_go_by_quarter_warps() -> None:
    counters = count("shared_vectors", [Out(aligned(128))])
    for kind in ("shared_load", "shared_store"):
        assert counters[kind] == {"requests": 1, "wavefronts": 4, "ideal": 4, "bytes": 512}


def test_instructions_by_class() -> None:
    x, y, counter = aligned(64) + 1, aligned(64), np.zeros(1, np.int32)
    counters = count("mixed", [In(x), Out(y), InOut(counter)], threads=64)
    assert counters["ctas"] == 1
    assert counters["threads"] == 64
    by_warp = counters["warp_instructions_by_class"]
    assert by_warp["float"] == 2 * 2
    assert by_warp["special"] == 2
    assert by_warp["collective"] == 2
    assert by_warp["barrier"] == 2
    assert by_warp["atomic"] == 2
    assert by_warp["global"] == 2 * 2
    for name in ("instructions", "warp_instructions"):
        assert sum(counters[f"{name}_by_class"].values()) == counters[name]
    assert counters["instructions"] == 32 * counters["warp_instructions"]


def test_counts_do_not_depend_on_the_schedule() -> None:
    x, y, counter = aligned(64) + 1, aligned(64), np.zeros(1, np.int32)
    seen = [count("mixed", [In(x), Out(y), InOut(counter)], threads=64, seed=seed) for seed in range(8)]
    assert all(counters == seen[0] for counters in seen)
