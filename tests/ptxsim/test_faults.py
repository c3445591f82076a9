"""Every fault in the asynchronous test kernels is caught on every seed; their right twins: test_async.py."""

from collections.abc import Callable

import async_kernels
import pytest
from ptxsim import SimulatorError

SEEDS = range(6)
WRONG = "wrong result"  # no rule is broken, the numbers are wrong

# Fault of gemm_tma.cu: what may be reported, by schedule.
GEMM = {
    "wrong_swizzle": {WRONG},
    "no_full_wait": {"UNINIT", "ASYNC_RACE"},
    "producer_parity": {"DEADLOCK"},
    "no_empty_wait": {"MBAR_MISUSE", "ASYNC_RACE", "RACE"},
    "load_out_of_bounds": {"SHARED_OOB"},
    "store_shared_out_of_bounds": {"SHARED_OOB"},
    "tx_too_large": {"DEADLOCK"},
    "no_wgmma_wait": {"WGMMA_REG"},
    "early_empty_arrive": {"RACE"},
    "no_sync_after_init": {"MBAR_MISUSE", "RACE"},
    "consumer_parity_stuck": {"RACE", "ASYNC_RACE", "DEADLOCK"},
    "consumer_parity_inverted": {"UNINIT", "ASYNC_RACE"},
    "empty_count_too_small": {"RACE", "ASYNC_RACE", "DEADLOCK"},
    "empty_count_too_large": {"DEADLOCK"},
    "tx_too_small": {"ASYNC_RACE", "UNINIT"},
    "no_wgmma_fence": {"WGMMA_FENCE"},
    "wgmma_fence_once": {"WGMMA_FENCE"},
    "tx_of_larger_box": {"DEADLOCK"},
    "group_stride_512": {WRONG},
    "k_advance_64": {"RACE", "ASYNC_RACE", "UNINIT"},
    "swapped_coordinates": {WRONG},
    "store_row_out_of_bounds": {"GLOBAL_OOB"},
    "shared_not_aligned": {"TMA_ALIGN"},
    "scale_out_of_bounds": {"GLOBAL_OOB"},
    "stages_alias": {"ASYNC_RACE", "RACE"},
    "barrier_overwritten": {"MBAR_MISUSE"},
    "barrier_in_one_lane": {"BARRIER", "DIVERGED", "DEADLOCK"},
    "no_init_fence": {"PROXY"},
    "relaxed_arrive": {"RACE"},
    "one_warp_skips": {"WGMMA_GROUP"},
    "map_not_grid_constant": {"TENSOR_MAP"},
    "base_offset": {"WGMMA_DESC"},
    "exit_before_wait": {"WGMMA_EXIT"},
}

CLUSTER = {
    "no_proxy_fence": {"PROXY"},
    "no_sync_before_store": {"UNINIT", "RACE", "PROXY"},
    "no_wait_read": {"RACE"},
    "no_sync_after_wait_read": {"RACE"},
    "no_final_wait": {"BULK_EXIT"},
    "no_cluster_sync_at_start": {"MBAR_MISUSE", "RACE"},
    "no_cluster_sync_at_end": {"CLUSTER_EXIT"},
    "empty_arrive_local": {"RACE", "ASYNC_RACE"},
    "multicast_mask": {"DEADLOCK", "DIVERGED"},
    "tx_without_peer": {"ASYNC_RACE", "UNINIT", "DEADLOCK", "DIVERGED"},
    "same_half_twice": {WRONG},
    "barrier_of_96": {"UNINIT", "RACE", "PROXY"},
    "arrive_with_cta_scope": {"RACE"},
    "registers_above_pool": {"DEADLOCK", "DIVERGED"},
    "store_not_committed": {"RACE", "BULK_EXIT"},
    "multicast_outside": {"MULTICAST"},
    "arrive_twice": {"CLUSTER_BARRIER"},
    "wait_without_arrive": {"CLUSTER_BARRIER"},
    "mapa_outside": {"SHARED_OOB"},
}

EXCHANGE = {
    "no_sync_before_flag": {"GLOBAL_RACE"},
    "no_sync_after_wait": {"GLOBAL_RACE"},
    "release_of_gpu": {"GLOBAL_RACE"},
    "acquire_of_gpu": {"GLOBAL_RACE"},
    "relaxed_store": {"GLOBAL_RACE"},
    "relaxed_load": {"GLOBAL_RACE"},
    "weak_store": {"GLOBAL_RACE"},
    "no_acknowledgement": {"GLOBAL_RACE"},
}

COPY = {
    "size_of_8": {"TMA_ALIGN"},
    "read_before_written": {"GLOBAL_RACE"},
    "exit_before_load": {"ASYNC_EXIT"},
    "init_twice": {"MBAR_MISUSE"},
    "invalidate_in_use": {"MBAR_MISUSE"},
    "parity_of_2": {"MBAR_MISUSE"},
    "bytes_left": {"MBAR_EXIT"},
    "count_of_0": {"MBAR_MISUSE"},
    "barrier_misaligned": {"MISALIGNED"},
    "source_written_without_fence": {"PROXY"},
    "store_not_committed": {"GLOBAL_RACE", "BULK_EXIT"},
    "plain_read_in_flight": {"UNINIT", "ASYNC_RACE"},
    "token_of_another_phase": {"MBAR_MISUSE"},
    "mbarrier_in_global": {"MBAR_MISUSE"},
    "read_only_result": {"GLOBAL_RO"},
    "used_after_invalidate": {"MBAR_MISUSE"},
}

PRODUCT = {
    "no_proxy_fence": {"PROXY"},
    "operand_changed": {"WGMMA_REG"},
    "accumulator_undefined": {"UNINIT"},
    "descriptor_differs": {"NOT_UNIFORM"},
    "reserved_bits": {"WGMMA_DESC"},
    "three_warps": {"WGMMA_GROUP"},
    "one_warp_more": {"WGMMA_GROUP"},
}

PAIR = {
    "no_sync_before_read": {"UNINIT", "RACE"},
    "no_sync_before_exit": {"CLUSTER_EXIT"},
    "relaxed_barrier": {"RACE"},
}

# Kernel family: how it is run, the least value that counts as a wrong result, its faults.
FAMILIES = {
    "gemm": (async_kernels.gemm, 1e-5, GEMM),
    "cluster_gemm": (async_kernels.cluster_gemm, 0.01, CLUSTER),
    "exchange": (async_kernels.exchange, 1, EXCHANGE),
    "copy": (async_kernels.copy, 1, COPY),
    "product": (async_kernels.product_of_fragments, 0.01, PRODUCT),
    "pair": (async_kernels.pair, 1, PAIR),
}
CASES = [(family, fault) for family, (_, _, faults) in FAMILIES.items() for fault in faults]


def outcome(run: Callable[[str, int], float], fault: str, seed: int, wrong: float) -> tuple[str, str]:
    """Kind and text of what was reported, WRONG for a wrong result, or an empty kind."""
    try:
        error = run(fault, seed)
    except SimulatorError as caught:
        return caught.kind, str(caught)
    return ("" if error < wrong else WRONG), f"error {error}"


@pytest.mark.parametrize(("family", "fault"), CASES)
def test_fault_is_caught_on_every_seed(family, fault):
    run, wrong, faults = FAMILIES[family]
    for seed in SEEDS:
        kind, said = outcome(run, fault, seed, wrong)
        assert kind in faults[fault], (seed, said)
        assert kind in {WRONG, "MBAR_EXIT", "CLUSTER_EXIT"} or "PTX line" in said


def test_wrong_numbers_are_the_only_sign_of_four_faults():
    """What the rules cannot see is known and small: everything else is reported as such."""
    assert sum(WRONG in FAMILIES[family][2][fault] for family, fault in CASES) == 4


def test_a_deadlock_says_who_waits_for_what():
    with pytest.raises(SimulatorError) as caught:
        async_kernels.gemm("tx_too_large", 0)
    text = str(caught.value)
    assert "0 arrivals and 16 bytes missing" in text
    assert "warp 0 lanes 00000001 wait for mbarrier at shared offset" in text
