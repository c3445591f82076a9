"""Faults that GEMMs of this kind have shipped with, each as the case that showed it; on a GPU and on the
simulator with every tile of the result that the kernel knows."""

from __future__ import annotations

from collections.abc import Callable

import backends
import gemm_inputs
import pytest
import torch
from cpu_tiers import CPU_TIERS
from gemm_inputs import Operands, assert_within_bound, random_operands
from test_gemm_grouped import (
    expert,
    expert_columns,
    grouped,
    grouped_operands,
    offsets,
    transposed_operands,
    wgrad,
)
from torch import Tensor

from deepseek_ext import ops

TILES = ["16x64", "64x64", "128x128"]
HOPPER_TILES = ["64x24", "64x48", "64x64", "128x128", "256x96", "256x128"]


def tiles_of(config: pytest.Config) -> list[str]:
    return HOPPER_TILES if backends.has_hopper(config) else TILES


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The CPU has no such tiles."""
    if "tile" in metafunc.fixturenames:
        on_cpu = metafunc.config.getoption("--backend") == "cpu"
        metafunc.parametrize("tile", [None] if on_cpu else tiles_of(metafunc.config), ids=str, indirect=True)


@pytest.fixture
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    if request.param is not None:
        monkeypatch.setenv("DSE_GEMM_TILE", request.param)
    return request.param


def fp32(o: Operands) -> Tensor:
    return ops.gemm(*o, out_dtype=torch.float32)


def assert_experts_within_bound(result: Tensor, o: Operands, loads: list[int]) -> None:
    for e, part in enumerate(result.split(loads)):
        assert_within_bound(part, expert(o, loads, e))


def assert_gradients_within_bound(result: Tensor, o: Operands, loads: list[int]) -> None:
    for e in range(len(loads)):
        assert_within_bound(result[e], expert_columns(o, loads, e))


@pytest.mark.parametrize("b_tiles", [False, True], ids=["blocks", "tiles"])
@pytest.mark.parametrize("transposed", [False, True], ids=["along_k", "along_n"])
def test_every_tile_on_ragged_edges(
    backend: str, tile: str | None, b_tiles: bool, transposed: bool, rng: torch.Generator
) -> None:
    for m, n, k in ((1, 1, 1), (129, 131, 127), (17, 65, 129), (130, 140, 300), (16, 256, 256)):
        o = random_operands(m, n, k, rng, b_tiles=b_tiles)
        if transposed:
            o.b = o.b.t().contiguous().t()
        assert_within_bound(fp32(o), o)


def test_every_tile_gives_the_same_bits(
    backend: str, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config, rng: torch.Generator
) -> None:
    """Plans differ between devices; the order of the sums does not."""
    if backend in CPU_TIERS:
        pytest.skip("the CPU has no such tiles")
    o = random_operands(70, 140, 400, rng)
    results = []
    for name in tiles_of(pytestconfig):
        monkeypatch.setenv("DSE_GEMM_TILE", name)
        results.append(fp32(o))
    assert all(torch.equal(result, results[0]) for result in results)


def test_an_unknown_tile_is_refused(
    backend: str, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    if backend in CPU_TIERS:
        pytest.skip("the CPU has no such tiles")
    monkeypatch.setenv("DSE_GEMM_TILE", "8x8")
    with pytest.raises(ValueError, match=r"DSE_GEMM_TILE must be 16x64, 64x24, .* or 256x128, got 8x8"):
        fp32(random_operands(3, 4, 5, rng))


@pytest.mark.parametrize("bits", [23, 13])
@pytest.mark.parametrize("product", ["dense", "positive", "grouped", "wgrad"])
def test_tensor_cores_that_cut_their_sums(
    backend: str,
    tile: str | None,
    product: str,
    bits: int,
    monkeypatch: pytest.MonkeyPatch,
    rng: torch.Generator,
) -> None:
    """As devices do, to so many bits below the largest of a step: another bound, and not the exact sums."""
    if backend != "simulator":
        pytest.skip("the simulator's tensor cores alone can be told how to add")
    loads = [0, 70, 3, 130]
    if product == "grouped":
        o = grouped_operands(loads, 70, 300, rng)
        result, check = lambda: grouped(o, loads), assert_experts_within_bound
    elif product == "wgrad":
        o = transposed_operands(loads, 70, 130, rng)
        result, check = lambda: wgrad(o, loads), assert_gradients_within_bound
    else:
        o = random_operands(20, 70, 600, rng, kind="positive" if product == "positive" else "any")
        result, check = lambda: fp32(o), lambda result, o, _: assert_within_bound(result, o)
    rounded = result()
    monkeypatch.setattr(gemm_inputs, "PARTIAL_SUMS", gemm_inputs.CUT << 23 - bits)
    backends.simulator_option("hwacc", bits)
    try:
        cut = result()
    finally:
        backends.simulator_option("hwacc", 0)
    check(cut, o, loads)
    assert not torch.equal(cut, rounded)


@pytest.mark.parametrize("loads", [[128], [128, 128], [0, 128, 1, 127, 129], [5, 0, 0, 256]], ids=str)
def test_an_expert_of_exactly_128_rows(
    backend: str, tile: str | None, loads: list[int], rng: torch.Generator
) -> None:
    """Results differed from run to run."""
    o = grouped_operands(loads, 130, 260, rng)
    result = grouped(o, loads)
    assert_experts_within_bound(result, o, loads)
    assert torch.equal(grouped(o, loads), result)
    o = transposed_operands(loads, 70, 130, rng)
    result = wgrad(o, loads)
    assert_gradients_within_bound(result, o, loads)
    assert torch.equal(wgrad(o, loads), result)


@pytest.mark.parametrize(("m", "n", "loads"), [(192, 768, [128, 256]), (352, 352, [384, 256])], ids=str)
def test_groups_of_uneven_depth(
    backend: str, tile: str | None, m: int, n: int, loads: list[int], rng: torch.Generator
) -> None:
    """Tiles of two groups under way at once hung, or mixed their codes."""
    o = transposed_operands(loads, m, n, rng)
    assert_gradients_within_bound(wgrad(o, loads), o, loads)


@pytest.mark.parametrize("shape", [(768, 768, 128), (768, 1536, 128)], ids=str)
def test_shapes_of_illegal_instructions(
    backend: str, shape: tuple[int, int, int], rng: torch.Generator
) -> None:
    o = random_operands(*shape, rng)
    assert_within_bound(fp32(o), o)


@pytest.mark.parametrize("loads", [[0], [0, 0, 0], [0, 7, 0], [0] * 40 + [9] + [0] * 30], ids=len)
def test_experts_without_rows(backend: str, tile: str | None, loads: list[int], rng: torch.Generator) -> None:
    """Kernels hung. More than 32 experts, which a warp looks at in turns."""
    o = grouped_operands(loads, 66, 130, rng, unused=3)
    result = grouped(o, loads)
    used = sum(loads)
    assert_experts_within_bound(result[:used], o, loads)
    assert torch.equal(result[used:], torch.zeros(3, 66))
    o = transposed_operands(loads, 20, 30, rng, spare=1)
    assert_gradients_within_bound(wgrad(o, loads), o, loads)


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("turned", [False, True], ids=["row_major", "column_major"])
def test_as_many_columns_as_scales_of_a_row(
    backend: str, tile: str | None, blocks: int, turned: bool, rng: torch.Generator
) -> None:
    """N == K/128: the layout of scales was guessed from their shape."""
    for b_tiles in (False, True):
        o = random_operands(blocks, blocks, 128 * blocks, rng, b_tiles=b_tiles)
        if turned:
            o.a_scales = o.a_scales.t().contiguous().t()
            o.b_scales = o.b_scales.t().contiguous().t()
        assert_within_bound(fp32(o), o)


def test_scales_with_a_padded_leading_dimension(backend: str, tile: str | None, rng: torch.Generator) -> None:
    """As quantize_tiles lays them out on a GPU: M-major, the column stride rounded up to 4."""
    o = random_operands(37, 70, 300, rng)
    plain = fp32(o)
    padded = torch.full((3, 40), torch.nan)[:, :37].t()
    padded.copy_(o.a_scales)
    assert torch.equal(fp32(Operands(o.a, padded, o.b, o.b_scales)), plain)


def far_apart(x: Tensor, bytes_between: int) -> Tensor:
    """x [2, K] with its two rows that many bytes apart; what lies between is never touched."""
    elements = bytes_between // x.element_size()
    out = torch.empty(elements + x.shape[1], dtype=x.dtype).as_strided(x.shape, (elements, 1))
    return out.copy_(x)


@pytest.mark.parametrize("operand", ["a", "b", "out"])
def test_offsets_beyond_31_bits(backend: str, operand: str, rng: torch.Generator) -> None:
    """sum_k * m overflowed an int32."""
    o = random_operands(2, 2, 100, rng)
    expected = fp32(o)
    far = 2**31 + 256
    out = torch.zeros(2, 2)
    if operand == "out":
        out = far_apart(out, far)
    else:
        setattr(o, operand, far_apart(getattr(o, operand), far))
    ops.gemm_accumulate_(out, *o)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("ends", [[5, 2, 9], [-7, 30, 12], [2**31 - 1, 0, 40], [40, 41, 42]], ids=str)
def test_values_of_offs_touch_nothing_out_of_bounds(
    backend: str, tile: str | None, ends: list[int], monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    """Unchecked on a GPU: the simulator knows every byte's owner."""
    if backend != "simulator":
        pytest.skip("needs the simulator's bounds")
    monkeypatch.delenv("DSE_CHECK")
    offs = torch.tensor(ends, dtype=torch.int32)
    o = grouped_operands([40, 0, 0], 30, 70, rng)
    assert ops.grouped_gemm(*o, offs).isfinite().all()
    o = transposed_operands([40, 0, 0], 30, 70, rng)
    assert ops.grouped_gemm_wgrad(*o, offs).isfinite().all()


CALLS: dict[str, Callable[[torch.Generator], None]] = {
    "gemm": lambda rng: fp32(random_operands(40, 70, 300, rng)),
    "grouped_gemm": lambda rng: grouped(grouped_operands([3, 40], 70, 300, rng), [3, 40]),
    "grouped_gemm_wgrad": lambda rng: wgrad(transposed_operands([3, 40], 70, 300, rng), [3, 40]),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_chosen_tile_is_printed_on_request(
    backend: str,
    call: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    rng: torch.Generator,
) -> None:
    if backend in CPU_TIERS:
        pytest.skip("the CPU has no such tiles")
    monkeypatch.setenv("DSE_PRINT_TILES", "1")
    CALLS[call](rng)
    assert capfd.readouterr().err.startswith(f"{call} ")


def test_a_path_can_be_forced(
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
    pytestconfig: pytest.Config,
    capfd: pytest.CaptureFixture[str],
    rng: torch.Generator,
) -> None:
    if backend != "simulator":
        pytest.skip("needs a device whose paths are known")
    monkeypatch.setenv("DSE_PRINT_TILES", "1")
    o = random_operands(40, 70, 256, rng)
    has_hopper = backends.has_hopper(pytestconfig)
    for path, taken in ((None, "hopper" if has_hopper else "portable"), ("portable", "portable")):
        if path:
            monkeypatch.setenv("DSE_GEMM", path)
        assert_within_bound(fp32(o), o)
        assert f"{taken}: tile" in capfd.readouterr().err
    monkeypatch.setenv("DSE_GEMM", "hopper")
    if has_hopper:
        assert_within_bound(fp32(o), o)
        o.b = o.b.t().contiguous().t()
    with pytest.raises(ValueError, match=r"DSE_GEMM=hopper needs a device of compute capability 9\.0"):
        fp32(o)
    monkeypatch.setenv("DSE_GEMM", "fast")
    with pytest.raises(ValueError, match="DSE_GEMM must be portable or hopper, got fast; unset it"):
        fp32(o)


def test_offsets_are_ends(rng: torch.Generator) -> None:
    assert offsets([3, 0, 2]).tolist() == [3, 3, 5]
