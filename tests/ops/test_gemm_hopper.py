"""The Hopper gemm on the simulator: schedules, waves of tiles, and the tensor core's own way to add."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import backends
import gemm_inputs
import pytest
import torch
from gemm_inputs import Operands, assert_within_bound, exact, random_operands
from test_gemm_faults import assert_experts_within_bound, assert_gradients_within_bound
from test_gemm_grouped import grouped, grouped_operands, transposed_operands, wgrad
from torch import Tensor

from deepseek_ext import ops

TILES = ["64x24", "64x48", "64x64", "128x128", "256x96", "256x128"]
SEEDS = range(20)
SMS = 3  # few, so that each computes several tiles
LOADS = [0, 1, 127, 128, 129, 0]

pytestmark = pytest.mark.gpu_backends


@pytest.fixture(autouse=True, params=TILES)
def _few_sms(request: pytest.FixtureRequest, backend: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if backend != "simulator" or not backends.has_hopper(request.config):
        pytest.skip("needs the simulator with --simulator-capability 90")
    monkeypatch.setenv("DSE_GEMM", "hopper")  # an error if the portable kernel would run
    monkeypatch.setenv("DSE_GEMM_TILE", request.param)
    backends.simulator_option("multiprocessors", SMS)
    yield
    backends.simulator_option("multiprocessors", 132)


def dense(o: Operands) -> Tensor:
    return ops.gemm(*o)


def dense_case(rng: torch.Generator) -> tuple[Callable[[], Tensor], Callable[[Tensor], None]]:
    o = random_operands(260, 576, 200, rng)

    def check(result: Tensor) -> None:
        product, absolute = exact(o)
        bound = gemm_inputs.bound_of(200, absolute)
        assert ((result.double() - product).abs() <= bound + 2.0**-8 * (product.abs() + bound)).all()

    return lambda: dense(o), check


def grouped_case(rng: torch.Generator) -> tuple[Callable[[], Tensor], Callable[[Tensor], None]]:
    o = grouped_operands(LOADS, 200, 260, rng)
    return lambda: grouped(o, LOADS), lambda result: assert_experts_within_bound(result, o, LOADS)


def wgrad_case(rng: torch.Generator) -> tuple[Callable[[], Tensor], Callable[[Tensor], None]]:
    o = transposed_operands(LOADS, 140, 130, rng)
    return lambda: wgrad(o, LOADS), lambda result: assert_gradients_within_bound(result, o, LOADS)


@pytest.mark.parametrize("case", [dense_case, grouped_case, wgrad_case])
def test_every_schedule_gives_the_same_bits(
    case: Callable[..., tuple[Callable[[], Tensor], Callable[[Tensor], None]]], rng: torch.Generator
) -> None:
    """Two waves of tiles and more, ragged in every dimension."""
    call, check = case(rng)
    first = call()
    check(first)
    for seed in SEEDS:
        backends.simulator_option("seed", seed)
        assert torch.equal(call(), first), f"seed {seed}"


@pytest.mark.parametrize("loads", [[0, 0, 300, 0], [300], [0] * 35 + [150, 0, 150]], ids=len)
def test_all_rows_in_one_expert(loads: list[int], rng: torch.Generator) -> None:
    o = grouped_operands(loads, 130, 140, rng, unused=70)
    result = grouped(o, loads)
    assert_experts_within_bound(result[: sum(loads)], o, loads)
    assert torch.equal(result[sum(loads) :], torch.zeros(70, 130))
    o = transposed_operands(loads, 70, 130, rng)
    assert_gradients_within_bound(wgrad(o, loads), o, loads)


@pytest.mark.parametrize("sms", [3, 132])
@pytest.mark.parametrize(
    ("loads", "m", "n"), [([128, 256], 192, 3072), ([384, 256], 1408, 1408)], ids=["192x3072", "1408x1408"]
)
def test_clusters_never_meet_two_groups(
    loads: list[int], m: int, n: int, sms: int, rng: torch.Generator
) -> None:
    """Where tiles of two groups shared a cluster it hung, or mixed their codes; 121 tiles a group are odd."""
    if os.environ["DSE_GEMM_TILE"] not in ("128x128", "256x128"):
        pytest.skip("narrower tiles have no weight gradients")
    backends.simulator_option("multiprocessors", sms)
    o = transposed_operands(loads, m, n, rng)
    assert_gradients_within_bound(wgrad(o, loads), o, loads)


@pytest.mark.parametrize("n", [1, 33, 97, 129, 193, 300])
def test_tiles_beyond_the_last_column(n: int, rng: torch.Generator) -> None:
    """Their CTAs copy rows of A for the others of the cluster; clusters of one where there is one tile."""
    for b_tiles in (False, True):
        o = random_operands(150, n, 300, rng, b_tiles=b_tiles)
        assert_within_bound(ops.gemm(*o, out_dtype=torch.float32), o)
    loads = [1, 0, 129]
    o = grouped_operands(loads, n, 150, rng)
    assert_experts_within_bound(grouped(o, loads), o, loads)


@pytest.mark.parametrize("b_tiles", [False, True], ids=["blocks", "tiles"])
@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_sums_of_thirteen_bits(
    kind: str, b_tiles: bool, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    """As the tensor core was measured to add: its own bound, and 2^-9 of the magnitudes on these inputs."""
    monkeypatch.setattr(gemm_inputs, "PARTIAL_SUMS", gemm_inputs.HOPPER_CUT)
    make = torch.randn if kind == "normal" else torch.rand
    for k in (128, 1024):
        x, w = make(70, k, generator=rng), make(140, k, generator=rng)
        o = Operands(*ops.quantize_tiles(x), *(ops.quantize_tiles if b_tiles else ops.quantize_blocks)(w))
        rounded = ops.gemm(*o, out_dtype=torch.float32)
        backends.simulator_option("hwacc", 13)
        try:
            cut = ops.gemm(*o, out_dtype=torch.float32)
        finally:
            backends.simulator_option("hwacc", 0)
        assert_within_bound(cut, o)
        assert not torch.equal(cut, rounded)
        product, absolute = exact(o)
        assert ((cut.double() - product).abs() / absolute).max() <= 2.0**-9


def test_accumulation(rng: torch.Generator) -> None:
    """The product is summed from zero and added once."""
    for b_tiles in (False, True):
        o = random_operands(260, 140, 300, rng, b_tiles=b_tiles)
        before = torch.randn(260, 140, generator=rng)
        out = before.clone()
        ops.gemm_accumulate_(out, *o)
        assert torch.equal(out, before + ops.gemm(*o, out_dtype=torch.float32))


@pytest.mark.parametrize("n", [1, 63, 128, 129])
def test_results_that_no_copy_can_store(n: int, rng: torch.Generator) -> None:
    """Rows of BF16 that do not begin at multiples of 16 bytes are stored pair by pair, or one by one."""
    o = random_operands(130, n, 128, rng)
    assert torch.equal(ops.gemm(*o), ops.gemm(*o, out_dtype=torch.float32).bfloat16())
