"""The Hopper gemm of the package with a line changed: what is left out or wrong is found, on every seed."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from async_kernels import HANG, operands, product
from ptxsim import BUILD, HERE, ROOT, In, Out, Simulator, SimulatorError, library

HOPPER = ROOT / "csrc/cuda/hopper"
SEEDS = range(3)
WRONG = "wrong result"  # no rule is broken, the numbers are wrong

KERNEL, WGMMA, DESCRIPTOR = "gemm_kernel.cuh", "wgmma.cuh", "matrix_descriptor.cuh"
TMA, CLUSTER, TILE = "tma.cuh", "cluster.cuh", "gemm_tile.h"
WAIT_FULL = "wait(ring.full(at.stage), at.parity);"
WAIT_AHEAD = "wait(ring.full(ahead.stage), ahead.parity);"
WAIT_EMPTY = "wait(ring.empty(at.stage), at.parity ^ 1);\n            "
RELEASE = (
    "__syncwarp();\n        "
    "if (share.lane < ctas) arrive_in_cluster(in_cta(ring.empty(at.stage), share.lane));"
)
SYNC, SYNC_START, SYNC_END = (
    f"synchronize_cluster();{rest}" for rest in ("", "\n    // Without", "  // others")
)
EXPECT = "arrive_expecting(ring.full(at.stage), T::kCodeBytes"
WAITS_READ = "if (share.lane == 0) wait_stores_read();"

FIRST_STEP = (
    "blocks -= 2) {\n            start(odd);\n            wait_products<1>(even);\n"
    "            finish(even, scales);\n            scales = load_scales(0);"
)
SECOND_STEP = "start(even);\n            wait_products<1>(odd);\n            finish(odd, scales);"
BELOW = "(1 | 1 << columns) << mine.column"

# What is changed: file, text, other text; and what may be reported, by schedule.
FAULTS: dict[str, tuple[list[tuple[str, str, str]], set[str]]] = {
    "no_wait_for_codes": ([(KERNEL, WAIT_FULL, "")], {"UNINIT", "ASYNC_RACE", "RACE", "WGMMA_REG"}),
    "parity_of_full": (
        [(KERNEL, WAIT_FULL, WAIT_FULL.replace("at.parity", "at.parity ^ 1"))],
        {"UNINIT", "ASYNC_RACE", "RACE"},
    ),
    "no_wait_for_room": (
        [(KERNEL, WAIT_EMPTY + "arrive_expecting", "arrive_expecting")],
        {"MBAR_MISUSE", "ASYNC_RACE", "RACE", "DEADLOCK"},
    ),
    "parity_of_empty": (
        [(KERNEL, WAIT_EMPTY + "arrive_expecting", WAIT_EMPTY.replace(" ^ 1", "") + "arrive_expecting")],
        {"DEADLOCK", "DIVERGED"},
    ),
    "no_wait_before_scales": (
        [(KERNEL, WAIT_EMPTY + "const uint32_t scales", "const uint32_t scales")],
        {"RACE", "UNINIT", "MBAR_MISUSE", "DEADLOCK"},
    ),
    "early_release": (
        [(KERNEL, RELEASE, ""), (KERNEL, WAIT_FULL, f"{WAIT_FULL} {RELEASE}")],
        {"RACE", "ASYNC_RACE"},
    ),
    "release_before_all_lanes_have_read": ([(KERNEL, RELEASE, RELEASE[13:])], {"RACE"}),
    "scales_announced_before_all_are_there": (
        [
            (
                KERNEL,
                "__syncwarp();\n            if (lane == 0) arrive(ring.full",
                "if (lane == 0) arrive(ring.full",
            )
        ],
        {"RACE", "UNINIT"},
    ),
    "no_fence_before_products": ([(KERNEL, "begin_products(partial);", "")], {"WGMMA_FENCE"}),
    "no_wait_for_products": (
        [(KERNEL, "wait_products<0>(partial);", "")],
        {"WGMMA_REG", "WGMMA_FENCE", "RACE"},
    ),
    "no_fence_before_copies": ([(KERNEL, "fence_for_copies();", "")], {"PROXY"}),
    "no_sync_before_copies": (
        [(KERNEL, "fence_for_copies();\n        __syncwarp();", "fence_for_copies();")],
        {"PROXY", "RACE", "UNINIT"},
    ),
    "no_wait_before_the_next_copy": ([(KERNEL, WAITS_READ, "")], {"RACE"}),
    "no_wait_at_the_end": (
        [(KERNEL, "if (threadIdx.x % kWarpSize == 0) wait_stores();", "")],
        {"BULK_EXIT"},
    ),
    "barriers_not_published": ([(KERNEL, "publish_barriers();", "")], {"PROXY"}),
    "barriers_not_awaited": (
        [(KERNEL, SYNC_START, SYNC_START.removeprefix(SYNC))],
        {"MBAR_MISUSE", "RACE", "UNINIT", "CLUSTER_EXIT"},
    ),
    # Others may not have begun: their barriers and shared memory are not there yet.
    "start_of_others_not_awaited": (
        [(KERNEL, SYNC_START, SYNC_START.replace(SYNC, "__syncthreads();"))],
        {"CLUSTER_EXIT", "MBAR_MISUSE", "RACE", "UNINIT", "ASYNC_RACE"},
    ),
    "exit_while_others_arrive": (
        [(KERNEL, SYNC_END, SYNC_END.removeprefix(SYNC))],
        {"CLUSTER_EXIT", "ASYNC_EXIT"},
    ),
    "empty_for_this_cta_alone": (
        [(KERNEL, RELEASE, "__syncwarp();\n        if (share.lane < ctas) arrive(ring.empty(at.stage));")],
        {"ASYNC_RACE", "RACE", "MBAR_MISUSE", "DEADLOCK"},
    ),
    "empty_without_the_others": (
        [
            (KERNEL, RELEASE, RELEASE.replace("share.lane < ctas", "share.lane == cluster_rank()")),
            (KERNEL, "T::kWarps * args.ctas", "T::kWarps"),
        ],
        {"ASYNC_RACE", "RACE", "MBAR_MISUSE", "DEADLOCK"},
    ),
    "arrivals_of_one_cta_counted": (
        [(KERNEL, "T::kWarps * args.ctas", "T::kWarps")],
        {"ASYNC_RACE", "RACE", "MBAR_MISUSE", "DEADLOCK"},
    ),
    "arrival_of_cta_scope": (
        [(CLUSTER, "arrive.shared::cluster", "arrive.release.cta.shared::cluster")],
        {"ASYNC_RACE", "RACE"},
    ),
    "copy_to_this_cta_alone": (
        [(KERNEL, "((1 << columns) - 1)", "(1 << cluster_rank())")],
        {"DEADLOCK", "DIVERGED"},
    ),
    "copy_beyond_the_cluster": (
        [(KERNEL, "((1 << columns) - 1)", "((2 << columns) - 1)")],
        {"MULTICAST"},
    ),
    "same_rows_by_every_cta": (
        [(KERNEL, "work.row + a_first, 0);", "work.row, 0);")],
        {WRONG},
    ),
    "same_place_by_every_cta": (
        [(KERNEL, "ring.a(at.stage) + a_first * kDepth", "ring.a(at.stage)")],
        {"ASYNC_RACE", "RACE", "UNINIT"},
    ),
    "columns_of_the_first_cta": (
        [(KERNEL, "args.cluster.columns + mine.column * T::kN", "args.cluster.columns")],
        {WRONG, "UNINIT", "GLOBAL_RACE", "RACE"},
    ),
    "too_many_bytes_expected": ([(KERNEL, EXPECT, EXPECT + " + 16")], {"DEADLOCK", "DIVERGED"}),
    "too_few_bytes_expected": (
        [(KERNEL, EXPECT, EXPECT + " - T::kBBytes")],
        {"ASYNC_RACE", "UNINIT", "MBAR_MISUSE", "RACE", "DEADLOCK"},
    ),
    "one_arrival_makes_full": (
        [(KERNEL, "kFullArrivals = 2", "kFullArrivals = 1")],
        {"MBAR_MISUSE", "UNINIT", "ASYNC_RACE", "RACE", "DEADLOCK"},
    ),
    "half_the_warps_make_empty": (
        [(KERNEL, "T::kWarps * args.ctas", "T::kWarps / 2 * args.ctas")],
        {"RACE", "ASYNC_RACE", "MBAR_MISUSE", "DEADLOCK"},
    ),
    "swizzle_of_the_descriptor": ([(DESCRIPTOR, "kSwizzle128 = 1", "kSwizzle128 = 2")], {WRONG}),
    "stride_of_the_descriptor": ([(DESCRIPTOR, "kEightRows = 1024", "kEightRows = 512")], {WRONG}),
    "steps_of_64_bytes": (
        [(KERNEL, "matrix_descriptor(a, k)", "matrix_descriptor(a, k / 32 * 16)")],
        {WRONG, "WGMMA_DESC"},
    ),
    "results_not_swizzled": (
        [(KERNEL, "words ^ i / 4 << 4", "words + (i / 4 << 4)")],
        {WRONG, "RACE", "UNINIT"},
    ),
    "rows_of_the_other_group": ([(KERNEL, "share.group_row + wave * 64", "wave * 64")], {WRONG}),
    "scales_of_the_block_before": (
        [
            (
                KERNEL,
                "a_scales + block * a.scale_k_stride",
                "a_scales + (block ? block - 1 : 0) * a.scale_k_stride",
            )
        ],
        {WRONG},
    ),
    "more_registers_than_there_are": (
        [(TILE, "232 : 208", "240 : 208")],
        {"DEADLOCK", "DIVERGED"},
    ),
}


# What tiles of 64 rows have of their own: two sets of sums, and columns of B that CTAs share.
NARROW_FAULTS: dict[str, tuple[list[tuple[str, str, str]], set[str]]] = {
    "no_wait_for_codes": ([(KERNEL, WAIT_AHEAD, "")], {"UNINIT", "ASYNC_RACE", "RACE", "WGMMA_REG"}),
    "waits_for_the_stage_before": (
        [(KERNEL, WAIT_AHEAD, WAIT_FULL)],
        {"UNINIT", "ASYNC_RACE", "RACE", "DEADLOCK"},
    ),
    "multiplies_the_stage_before": (
        [(KERNEL, "start_products(ring, ahead.stage", "start_products(ring, at.stage")],
        {WRONG, "RACE", "ASYNC_RACE"},
    ),
    "no_fence_before_products": ([(KERNEL, "begin_products(partial);", "")], {"WGMMA_FENCE"}),
    "no_wait_for_the_set": (
        [(KERNEL, FIRST_STEP, FIRST_STEP.replace("<1>", "<2>"))],
        {"WGMMA_REG", "WGMMA_FENCE", "RACE", "ASYNC_RACE"},
    ),
    "no_wait_at_the_last_stage": (
        [(KERNEL, "wait_products<0>(odd);", "wait_products<1>(odd);")],
        {"WGMMA_REG", "WGMMA_FENCE", "RACE", "ASYNC_RACE"},
    ),
    "promotes_the_set_under_way": (
        [(KERNEL, FIRST_STEP, FIRST_STEP.replace("finish(even", "finish(odd"))],
        {"WGMMA_REG"},
    ),
    "promotes_the_other_set": (
        [
            (
                KERNEL,
                FIRST_STEP,
                FIRST_STEP.replace("<1>(even)", "<0>(odd)").replace("finish(even", "finish(odd"),
            )
        ],
        {WRONG},
    ),
    "releases_the_stage_under_way": (
        [
            (
                KERNEL,
                SECOND_STEP,
                "release();" + SECOND_STEP.replace("finish(odd, ", "promote<T, kBTiles>(sums[0], odd, "),
            )
        ],
        {"RACE", "ASYNC_RACE"},
    ),
    "scales_of_the_stage_before": (
        [(KERNEL, FIRST_STEP, FIRST_STEP.replace("scales = load_scales(0);", ""))],
        {WRONG},
    ),
    "empty_without_those_below": (
        [
            (KERNEL, RELEASE, RELEASE.replace("share.lane < ctas", "share.lane / 4 == cluster_rank() / 4")),
            (KERNEL, "T::kWarps * args.ctas", "T::kWarps * args.cluster.columns"),
        ],
        {"ASYNC_RACE", "RACE", "MBAR_MISUSE", "DEADLOCK"},
    ),
    "columns_to_this_cta_alone": ([(KERNEL, BELOW, "1 << cluster_rank()")], {"DEADLOCK", "DIVERGED"}),
    "columns_to_a_neighbour": (
        [(KERNEL, BELOW, BELOW.replace("mine.column", "(mine.column ^ 1)"))],
        {WRONG, "ASYNC_RACE", "RACE"},
    ),
    "same_columns_by_both": ([(KERNEL, "work.column + b_first", "work.column")], {WRONG}),
    "same_place_by_both": (
        [(KERNEL, "ring.b(at.stage) + b_first * kDepth", "ring.b(at.stage)")],
        {"ASYNC_RACE", "RACE", "UNINIT"},
    ),
    "rows_of_the_first_cta": (
        [(KERNEL, "number(place.rows.start) + mine.row * T::kM", "number(place.rows.start)")],
        {WRONG, "UNINIT", "GLOBAL_RACE", "RACE"},
    ),
    "one_scale_of_b_a_tile": ([(TILE, "kColumns & -kColumns", "kColumns")], {WRONG}),
    "more_registers_than_there_are": (
        [(TILE, "232 : 208", "232 : 256"), (TILE, "40 : 88", "40 : 96")],
        {"DEADLOCK", "DIVERGED"},
    ),
}


def build(folder: Path, changes: list[tuple[str, str, str]], narrow: bool = False) -> ctypes.CDLL:
    """kernels/hopper_gemm.cu on headers with these changes, as an extension is built."""
    changed = folder / "cuda/hopper"
    shutil.copytree(HOPPER, changed)
    for name, text, other in changes:
        source = (changed / name).read_text()
        assert source.count(text) == 1, f"{name} has {source.count(text)} times: {text}"
        (changed / name).write_text(source.replace(text, other))
    library()
    made = folder / "gemm.so"
    command = ["nvcc", "-std=c++20", "-O3", "-fmad=false", "--no-compress", "-cudart", "none", "-shared"]
    command += ["-gencode=arch=compute_90a,code=compute_90a", "-Xcompiler=-fPIC"]
    command += ["-DROWS=64", "-DCOLUMNS=48"] if narrow else ["-DROWS=128", "-DCOLUMNS=128"]
    command += [f"-I{folder}", f"-I{ROOT / 'csrc'}", HERE / "kernels/hopper_gemm.cu", "-o", made]
    command += [f"-L{BUILD}", "-lptxsim", "-Xlinker", f"-rpath={BUILD}"]
    subprocess.run(command, check=True, capture_output=True)
    return ctypes.CDLL(str(made))


def error_of(
    program: ctypes.CDLL, seed: int, clusters: int, rows: int, columns: int, stages: int = 6
) -> float:
    """Of tiles on clusters of rows x columns CTAs, ragged tiles among them and some beyond the last row and
    column: the largest |out - exact| beyond its rounding."""
    m, n, k = 264, 328, 128 * stages
    a, b, sa, sb = operands(seed, m, n, k)
    out = np.zeros((m, n), ml_dtypes.bfloat16)
    with Simulator(seed=seed, max_inst=HANG) as sim:
        pointers = [sim.buffer(x) for x in (In(a), In(sa), In(b), In(sb), Out(out))]
        if program.run(*map(ctypes.c_void_p, pointers), m, n, k, clusters, rows, columns):
            raise SimulatorError(library().ptxsim_error().decode())
        sim.run()
        assert sim.unwritten(out) is None
    exact, size = product(a, b, sa, sb)
    beyond = np.abs(out.astype(float) - exact) - 2.0**-8 * np.abs(exact) - 2.0**-16 * size
    return float(np.where(np.isnan(beyond), np.inf, beyond).max())


@pytest.mark.parametrize("narrow", [False, True])
def test_as_it_is(tmp_path: Path, narrow: bool) -> None:
    program = build(tmp_path, [], narrow)
    clusters = [(2, 2, 4), (3, 1, 8), (2, 2, 1), (3, 1, 1)] if narrow else [(3, 1, 1), (2, 1, 2), (1, 1, 4)]
    for seed in SEEDS:
        for count, rows, columns in clusters:
            for stages in (1, 2, 5, 6) if narrow else (6,):
                error = error_of(program, seed, count, rows, columns, stages)
                assert error <= 0, f"{count} clusters of {rows} x {columns}, {stages} stages, seed {seed}"


def is_found(program: ctypes.CDLL, kinds: set[str], *clusters: int) -> None:
    for seed in SEEDS:
        try:
            found = WRONG if error_of(program, seed, *clusters) > 0 else "nothing"
        except SimulatorError as error:
            found = error.kind
        assert found in kinds, f"seed {seed}"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(tmp_path: Path, fault: str) -> None:
    changes, kinds = FAULTS[fault]
    is_found(build(tmp_path, changes), kinds, 2, 1, 2)


@pytest.mark.parametrize("fault", NARROW_FAULTS)
def test_a_fault_of_narrow_tiles_is_found(tmp_path: Path, fault: str) -> None:
    changes, kinds = NARROW_FAULTS[fault]
    is_found(build(tmp_path, changes, narrow=True), kinds, 2, 2, 4)
