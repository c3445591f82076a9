"""The reference of the gemm family: held to arithmetic by hand, since everything else is held to it."""

from __future__ import annotations

import pytest
import torch
from gemm_inputs import Operands, exact, random_operands
from torch import Tensor

from deepseek_ext.reference.gemm import gemm, grouped_gemm, grouped_gemm_wgrad, tensor_core_product


def codes(values: list[list[float]]) -> Tensor:
    x = torch.tensor(values)
    assert torch.equal(x.to(torch.float8_e4m3fn).float(), x), "every value is an E4M3"
    return x.to(torch.float8_e4m3fn)


def test_product_by_hand() -> None:
    """Two blocks of K, scales of their own; 130 columns reach into the second block of N."""
    a = torch.zeros(1, 130)
    b = torch.zeros(130, 130)
    a[0, 0], a[0, 129] = 3.0, 0.5
    b[:, 0], b[:, 129] = 2.0, -4.0
    a_scales = torch.tensor([[0.25, 8.0]])
    b_scales = torch.tensor([[2.0, 0.5], [1.0, 4.0]])
    c = torch.float8_e4m3fn
    product = gemm(a.to(c), a_scales, b.to(c), b_scales, out_dtype=torch.float32)
    first, second = 6 * 0.25 * 2.0 - 2 * 8.0 * 0.5, 6 * 0.25 * 1.0 - 2 * 8.0 * 4.0
    assert product.tolist() == [[first] * 128 + [second] * 2]


def test_tiles_and_blocks_are_told_apart() -> None:
    a, b = codes([[1.0, 1.0]]), codes([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    one = torch.ones(1, 1)
    assert gemm(a, one, b, torch.tensor([[2.0]]), out_dtype=torch.float32).tolist() == [[6.0, 14.0, 22.0]]
    tiles = torch.tensor([[1.0], [10.0], [100.0]])
    assert gemm(a, one, b, tiles, out_dtype=torch.float32).tolist() == [[3.0, 70.0, 1100.0]]


def test_fp64_is_the_product_of_the_dequantised_operands(rng: torch.Generator) -> None:
    o = random_operands(5, 7, 300, rng, b_tiles=True)
    a = o.a.double() * o.a_scales.double().repeat_interleave(128, 1)[:, :300]
    b = o.b.double() * o.b_scales.double().repeat_interleave(128, 1)[:, :300]
    product, absolute = exact(o)
    torch.testing.assert_close(product, a @ b.t(), rtol=1e-13, atol=1e-13 * absolute.max().item())
    torch.testing.assert_close(absolute, a.abs() @ b.abs().t(), rtol=1e-13, atol=0)


def test_grouped_by_hand() -> None:
    a = codes([[1.0], [2.0], [3.0], [4.0]])
    b = torch.stack([codes([[1.0]]), codes([[10.0]]), codes([[8.0]])])
    ends = torch.tensor([1, 1, 3], dtype=torch.int32)
    product = grouped_gemm(a, torch.ones(4, 1), b, torch.ones(3, 1, 1), ends, out_dtype=torch.float32)
    assert product.tolist() == [[1.0], [16.0], [24.0], [0.0]]


def test_wgrad_by_hand() -> None:
    """One row for expert 0, none for 1, two for 2: its columns start at 128."""
    a, b = torch.zeros(1, 256), torch.zeros(2, 256)
    a[0, 0], a[0, 128], a[0, 129] = 2.0, 3.0, 4.0
    b[0, 0], b[0, 128], b[1, 129] = 5.0, 6.0, 7.0
    c = torch.float8_e4m3fn
    scales_a, scales_b = torch.tensor([[1.0, 0.5]]), torch.tensor([[1.0, 1.0], [1.0, 2.0]])
    ends = torch.tensor([1, 1, 3], dtype=torch.int32)
    gradient = grouped_gemm_wgrad(a.to(c), scales_a, b.to(c), scales_b, ends)
    assert gradient.tolist() == [[[10.0, 0.0]], [[0.0, 0.0]], [[9.0, 28.0]]]


def one_step(products: list[float]) -> float:
    """The tensor core's sum of up to 32 products, each a code times 1."""
    return tensor_core_product(codes([products]), codes([[1.0] * len(products)])).item()


def test_h800_keeps_13_bits_below_the_largest() -> None:
    # 256 = 2^8: what lies below 2^(8 - 13) = 2^-5 is cut off.
    assert one_step([256.0, 2.0**-5]) == 256 + 2.0**-5
    assert one_step([256.0, 2.0**-6]) == 256
    assert one_step([256.0, 2.0**-6, 2.0**-6]) == 256, "each product is cut before it is added"
    assert one_step([256.0, 2.0**-5 + 2.0**-6]) == 256 + 2.0**-5


def test_h800_cuts_downwards() -> None:
    assert one_step([256.0, -(2.0**-9)]) == 256 - 2.0**-5
    assert one_step([-256.0, 2.0**-9]) == -256


def test_h800_cuts_the_sum_to_13_bits() -> None:
    """Two addends with last bit 2^-5: the sum, 2^9, has last bit 2^-4."""
    assert one_step([256.0, 256.0, 2.0**-5]) == 512
    assert one_step([256.0, 256.0, 2.0**-4]) == 512 + 2.0**-4
    assert one_step([-256.0, -256.0, -(2.0**-5)]) == -(512 + 2.0**-4)


def test_h800_running_sum_takes_part_in_the_alignment() -> None:
    """The second step's products are cut by what the first one left."""
    a = codes([[256.0] + [0.0] * 31 + [2.0**-6] * 32])
    b = codes([[1.0] * 64])
    assert tensor_core_product(a, b).item() == 256
    exchanged = torch.cat([a[:, 32:].float(), a[:, :32].float()], 1).to(torch.float8_e4m3fn)
    assert tensor_core_product(exchanged, b).item() == 256.5


def test_h800_is_exact_for_short_numbers() -> None:
    assert one_step([1.0, 2.0, -3.0, 0.5]) == 0.5
    assert one_step([0.0, 0.0]) == 0
    assert tensor_core_product(codes([[2.0]]), codes([[1.5], [-1.5]])).tolist() == [[3.0, -3.0]]


def test_promotion_takes_the_sum_out_every_128() -> None:
    """128 times 2^-6 after a 256: the running sum swallows them; promoted, each block starts anew."""
    a = codes([[256.0] + [0.0] * 127 + [2.0**-6] * 128])
    b = codes([[1.0] * 256])
    ones = torch.ones(1, 2)
    inside = gemm(a, ones, b, ones, out_dtype=torch.float32, accumulator="h800", promote=None)
    promoted = gemm(a, ones, b, ones, out_dtype=torch.float32, accumulator="h800")
    assert (inside.item(), promoted.item()) == (256.0, 258.0)


@pytest.mark.parametrize("k", [128, 1000, 4096])
@pytest.mark.parametrize("draw", [torch.randn, torch.rand], ids=["normal", "uniform"])
def test_h800_error_with_promotion(k: int, draw, rng: torch.Generator) -> None:
    """Below 2^-9 of sum |a b| when promoted, and worse when not, for N(0, 1) and U(0, 1)."""
    a, b = (draw(16, k, generator=rng).to(torch.float8_e4m3fn) for _ in range(2))
    ones = torch.ones(16, -(-k // 128))
    o = Operands(a, ones, b, ones)
    product, absolute = exact(o)

    def error(promote: int | None) -> float:
        d = gemm(*o, out_dtype=torch.float32, accumulator="h800", promote=promote)
        return ((d.double() - product).abs() / absolute).max().item()

    assert error(128) <= 2.0**-9
    assert error(128) <= error(None)
    if k > 1000:
        assert error(None) > 4 * error(128)


def test_unknown_accumulator_and_impossible_promotion(rng: torch.Generator) -> None:
    o = random_operands(2, 2, 300, rng)
    with pytest.raises(ValueError, match="accumulator 'fp16' is unknown; write 'fp32', 'fp64' or 'h800'"):
        gemm(*o, accumulator="fp16")
    with pytest.raises(ValueError, match="promote=None is not possible with accumulator 'fp32'"):
        gemm(*o, promote=None)
    with pytest.raises(ValueError, match="promote=64 is not possible"):
        gemm(*o, accumulator="h800", promote=64)
    with pytest.raises(ValueError, match="needs scales that do not vary along K"):
        gemm(*o, accumulator="h800", promote=None)
