"""The quantize family against its reference: the same bits on every tier, for all numbers and layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from quantize_inputs import FLOATS, SHAPES, adversarial, assert_same_bits, random_offs
from torch import Tensor

from deepseek_ext import ops
from deepseek_ext.reference import quantize as reference


def both(name: str, *args: object, **kwargs: object) -> None:
    """Calls ours and the reference's function of that name and compares the bits."""
    got = getattr(ops, name)(*args, **kwargs)
    wanted = getattr(reference, name)(*args, **kwargs)
    assert_same_bits(got, wanted)


@dataclass
class Case:
    """Calls, each with what the reference answers; worked out once for all tiers."""

    calls: list[tuple[str, tuple[object, ...], dict[str, object]]]
    wanted: list[Tensor | tuple[Tensor, ...]]


def case_id(parameters: tuple[object, ...]) -> str:
    shape, dtype, power_of_2 = parameters
    return f"{shape}-{str(dtype)[6:]}-{'power_of_2' if power_of_2 else 'any_scale'}"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The reference works on tensors too small to share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=list(product(SHAPES, FLOATS, [False, True])), ids=case_id)
def case(request: pytest.FixtureRequest) -> Case:
    (m, k), dtype, power_of_2 = request.param
    rng = torch.Generator().manual_seed(1000 * m + k)
    x = adversarial(rng, m, k, dtype)
    offs, more_offs = random_offs(rng, m, 5), random_offs(rng, m, 4)
    option = {"power_of_2": power_of_2}
    calls: list[tuple[str, tuple[object, ...], dict[str, object]]] = [
        ("quantize_tiles", (x,), option),
        ("quantize_tiles_transposed", (x,), option),
        ("quantize_tiles_transposed", (x, offs), option),
        ("quantize_tiles_both", (x,), option),
        ("quantize_tiles_both", (x, offs), option),
        ("quantize_blocks", (x,), option),
        ("quantize_blocks", (torch.stack([x, 2 * x]),), option),
    ]
    tiles = reference.quantize_tiles(x, **option)
    blocks = reference.quantize_blocks(x, **option)
    stacked_blocks = reference.quantize_blocks(torch.stack([x, x / 3]), **option)
    calls += [
        ("dequantize_tiles", (*tiles, dtype), {}),
        ("dequantize_blocks", (*blocks, dtype), {}),
        ("dequantize_blocks", (*stacked_blocks, dtype), {}),
        ("transpose_blocks", blocks, {}),
        ("transpose_blocks", stacked_blocks, {}),
        ("retile", tiles, option),
        ("retile", (*tiles, more_offs), option),
    ]
    packed = reference.quantize_e5m6(x)
    calls += [
        ("quantize_e5m6", (x,), {}),
        ("dequantize_e5m6", (*packed, k, dtype), {}),
        ("retile_e5m6", (*packed, k), option),
    ]
    return Case(calls, [getattr(reference, name)(*args, **kwargs) for name, args, kwargs in calls])


def test_every_operator_equals_its_reference(backend: str, case: Case) -> None:
    for (name, args, kwargs), wanted in zip(case.calls, case.wanted, strict=True):
        try:
            assert_same_bits(getattr(ops, name)(*args, **kwargs), wanted)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


def any_codes(rng: torch.Generator, m: int, k: int) -> Tensor:
    return torch.randint(0, 256, (m, k), generator=rng, dtype=torch.uint8).view(torch.float8_e4m3fn)


def test_retile_and_dequantize_take_any_codes_and_scales(backend, rng):
    """Not only what quantize_tiles makes: all codes; scales that overflow, underflow, or are no numbers."""
    codes = any_codes(rng, 200, 520)
    scales = torch.randn(200, 5, generator=rng) * 2.0 ** torch.randint(-149, 128, (200, 5), generator=rng)
    scales.view(-1)[::17] = torch.tensor([float("inf"), float("nan"), 0.0, 2.0**118, 2.0**-149] * 12)[:59]
    for power_of_2 in (False, True):
        both("retile", codes, scales, power_of_2=power_of_2)
    for dtype in FLOATS:
        both("dequantize_tiles", codes, scales, dtype)


def test_retile_is_dequantize_then_quantize_transposed(backend, rng):
    codes, scales = ops.quantize_tiles(adversarial(rng, 300, 520))
    offs = random_offs(rng, 300, 4)
    wide = ops.dequantize_tiles(codes, scales)
    assert_same_bits(
        ops.retile(codes, scales, offs), ops.quantize_tiles_transposed(wide, offs, power_of_2=True)
    )


def test_both_is_the_two_directions(backend, rng):
    x = adversarial(rng, 300, 520, torch.bfloat16)
    assert_same_bits(ops.quantize_tiles_both(x), (*ops.quantize_tiles(x), *ops.quantize_tiles_transposed(x)))


@pytest.mark.parametrize("groups", [31, 32, 70])
def test_many_groups(backend, rng, groups):
    """More than a warp has lanes, most of them empty, one of exactly 128 rows."""
    x = adversarial(rng, 300, 9)
    offs = random_offs(rng, 160, groups) + 12
    offs[-3:] = torch.tensor([172, 300, 300])
    both("quantize_tiles_transposed", x, offs)
    both("retile", *reference.quantize_tiles(x), offs)


@pytest.mark.gpu_backends
@pytest.mark.parametrize("ends", [(-5, 200), (90, 30), (2**31 - 1, 7), (-(2**31),)], ids=str)
def test_bad_offsets_touch_no_other_memory(backend, monkeypatch, ends):
    """Without DSE_CHECK=1 nobody reads them before the kernel does, which keeps within its arguments."""
    monkeypatch.delenv("DSE_CHECK")
    x, offs = torch.ones(150, 20), torch.tensor(ends, dtype=torch.int32)
    for result in (
        ops.quantize_tiles_transposed(x, offs),
        ops.quantize_tiles_both(x, offs)[2:],
        ops.retile(*ops.quantize_tiles(x), offs, power_of_2=False),
    ):
        assert set(result[0].float().unique().tolist()) <= {0.0, 448.0}


@pytest.mark.parametrize("shape", [(127, 129), (64, 1000), (300, 64)], ids=str)
def test_transposed_blocks_are_the_blocks_of_the_transpose(backend, rng, shape):
    w = adversarial(rng, *shape)
    assert_same_bits(ops.transpose_blocks(*ops.quantize_blocks(w)), ops.quantize_blocks(w.T))


def calls(rng: torch.Generator) -> dict[str, Callable[[], Tensor | tuple[Tensor, ...]]]:
    """One call of every operator on something large enough to be shared between threads."""
    x = adversarial(rng, 700, 1100, torch.bfloat16)
    offs = random_offs(rng, 700, 6)
    codes, scales = ops.quantize_tiles(x)
    blocks, block_scales = ops.quantize_blocks(x)
    packed, packed_scales = ops.quantize_e5m6(x)
    return {
        "quantize_tiles": lambda: ops.quantize_tiles(x),
        "quantize_tiles_transposed": lambda: ops.quantize_tiles_transposed(x, offs),
        "quantize_tiles_both": lambda: ops.quantize_tiles_both(x, offs),
        "quantize_blocks": lambda: ops.quantize_blocks(x),
        "transpose_blocks": lambda: ops.transpose_blocks(blocks, block_scales),
        "dequantize_tiles": lambda: ops.dequantize_tiles(codes, scales),
        "dequantize_blocks": lambda: ops.dequantize_blocks(blocks, block_scales),
        "retile": lambda: ops.retile(codes, scales, offs),
        "quantize_e5m6": lambda: ops.quantize_e5m6(x),
        "dequantize_e5m6": lambda: ops.dequantize_e5m6(packed, packed_scales, 1100),
        "retile_e5m6": lambda: ops.retile_e5m6(packed, packed_scales, 1100),
    }


def test_bits_do_not_depend_on_threads(cpu_tier, rng):
    before = torch.get_num_threads()
    try:
        for call in calls(rng).values():
            torch.set_num_threads(1)
            one = call()
            for threads in (2, 3):
                torch.set_num_threads(threads)
                assert_same_bits(call(), one)
    finally:
        torch.set_num_threads(before)


def test_beyond_the_cache(cpu_tier, rng):
    """Large enough for non-temporal stores wherever the last-level cache is below 100 MB."""
    if cpu_tier in {"generic", "avx512_bf16-novbmi", "avx512_bf16"}:
        pytest.skip("the generic tier has no such stores; the BF16 tiers run the same code as avx512 here")
    x = adversarial(rng, 256, 384, torch.bfloat16).repeat(90, 4)
    small = ops.quantize_tiles(x[:256])
    codes, scales = ops.quantize_tiles(x)
    assert_same_bits((codes, scales), (small[0].repeat(90, 1), small[1].repeat(90, 1)))
    small_t = ops.quantize_tiles_transposed(x[:256])
    assert_same_bits(ops.quantize_tiles_transposed(x), tuple(t.repeat(1, 90) for t in small_t))


class TestStrides:
    def test_rows_are_read_in_place_or_copied(self, backend, rng):
        wide = adversarial(rng, 64, 600, torch.bfloat16)
        views = {
            "columns of a wider matrix": wide[:, 17:317],
            "every other row": wide[::2],
            "last dimension not adjacent": wide[:, ::2],
            "transposed": wide.T,
            "expanded": wide[:1].expand(5, -1),
            "one column": wide[:, 3:4],
        }
        for what, view in views.items():
            for name in (
                "quantize_tiles",
                "quantize_tiles_transposed",
                "quantize_tiles_both",
                "quantize_blocks",
            ):
                got, wanted = getattr(ops, name)(view), getattr(ops, name)(view.contiguous())
                try:
                    assert_same_bits(got, wanted)
                except AssertionError as error:
                    raise AssertionError(f"{name} of {what}: {error}") from None
            assert_same_bits(ops.quantize_e5m6(view), ops.quantize_e5m6(view.contiguous()))

    @pytest.mark.parametrize("shape", [(7,), (2, 3, 200), (2, 1, 3, 130), (0, 3, 5), (1, 1, 1)], ids=str)
    def test_leading_dimensions(self, backend, rng, shape):
        x = torch.randn(shape, generator=rng)
        both("quantize_tiles", x)
        both("quantize_e5m6", x)
        both("dequantize_tiles", *reference.quantize_tiles(x), torch.bfloat16)

    def test_leading_dimensions_in_any_order(self, rng):
        x = torch.randn(4, 5, 6, 200, generator=rng)
        for view in (
            x.permute(2, 0, 1, 3),
            x.permute(1, 0, 2, 3),
            x[:, :, ::2],
            x[:, 1:3],
            x.transpose(1, 3),
        ):
            both("quantize_tiles", view)
            codes, scales = ops.quantize_tiles(view.contiguous())
            order = (3, 0, 1, 2)
            strided = codes.permute(order).contiguous().permute(1, 2, 3, 0)
            strided_scales = scales.permute(order).contiguous().permute(1, 2, 3, 0)
            assert_same_bits(
                ops.dequantize_tiles(strided, strided_scales), ops.dequantize_tiles(codes, scales)
            )

    def test_codes_and_scales(self, backend, rng):
        x = torch.randn(200, 900, generator=rng)
        codes, scales = ops.quantize_tiles(x)
        wide = torch.zeros(200, 1000, dtype=torch.uint8)
        wide[:, 50:950] = codes.view(torch.uint8)
        view = wide[:, 50:950].view(torch.float8_e4m3fn)
        m_major = scales.T.contiguous().T  # as CUDA lays them out
        offs = torch.tensor([7, 7, 150], dtype=torch.int32)
        strided_offs = torch.stack([offs, offs], 1)[:, 0]
        assert_same_bits(ops.dequantize_tiles(view, m_major), ops.dequantize_tiles(codes, scales))
        assert_same_bits(ops.retile(view, m_major, strided_offs), ops.retile(codes, scales, offs))
        for stack in (x, torch.stack([x, x - 1])):
            blocks, block_scales = ops.quantize_blocks(stack)
            view, view_scales = blocks.mT.contiguous().mT, block_scales.mT.contiguous().mT
            assert_same_bits(
                ops.dequantize_blocks(view, view_scales), ops.dequantize_blocks(blocks, block_scales)
            )
            assert_same_bits(
                ops.transpose_blocks(view, view_scales), ops.transpose_blocks(blocks, block_scales)
            )

    def test_stacks_of_weights_in_place(self, backend, rng):
        w = torch.randn(3, 200, 300, generator=rng)
        for view in (w[:, :130], w[:, :, 20:270], w[::2], w.permute(1, 0, 2), w.mT):
            both("quantize_blocks", view)


class TestNotFinite:
    """A NaN in is a NaN out, in its own place only."""

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("name", ["quantize_tiles", "quantize_tiles_transposed", "quantize_blocks"])
    def test_neighbours_are_as_if_it_were_absent(self, backend, rng, name, bad):
        clean = torch.randn(256, 256, generator=rng)
        clean[5, 7] = 0
        dirty = clean.clone()
        dirty[5, 7] = bad
        codes, scales = getattr(ops, name)(clean)
        dirty_codes, dirty_scales = getattr(ops, name)(dirty)
        where = (7, 5) if name == "quantize_tiles_transposed" else (5, 7)
        assert dirty_codes.view(torch.uint8)[where] == 0x7F
        expected = codes.view(torch.uint8).clone()
        expected[where] = 0x7F
        assert_same_bits((dirty_codes, dirty_scales), (expected.view(torch.float8_e4m3fn), scales))

    def test_a_tile_of_nothing_else(self, backend):
        codes, scales = ops.quantize_tiles(torch.full((1, 128), float("nan")))
        assert (codes.view(torch.uint8) == 0x7F).all()
        assert scales.item() == 1

    def test_negative_nan_codes_stay_nan(self, backend):
        codes = torch.full((128, 128), 0xFF, dtype=torch.uint8).view(torch.float8_e4m3fn)
        scales = torch.ones(128, 1)
        assert ops.dequantize_tiles(codes, scales, torch.float16).isnan().all()
        assert (ops.retile(codes, scales)[0].view(torch.uint8) == 0x7F).all()


@pytest.mark.parametrize(
    ("dtype", "limit"),
    [
        (torch.float32, 3.4028234663852886e38),
        (torch.bfloat16, 3.3895313892515355e38),
        (torch.float16, 65504.0),
    ],
)
def test_dequantize_saturates(backend, dtype, limit):
    codes = torch.tensor([448.0, -448.0, 0.0]).to(torch.float8_e4m3fn)
    y = ops.dequantize_tiles(codes, torch.tensor([1e38]), dtype)
    assert y.tolist() == [limit, -limit, 0.0]


def test_no_gradient_through_codes(rng):
    x = torch.randn(4, 130, generator=rng, requires_grad=True)
    for results in (
        ops.quantize_tiles(x),
        ops.quantize_tiles_both(x),
        ops.quantize_blocks(x),
        ops.quantize_e5m6(x),
    ):
        assert not any(t.requires_grad for t in results)
