"""The C++ operators compute in IEEE arithmetic even where the caller's thread flushes denormals to zero."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from deepseek_ext import ops


@pytest.fixture
def flush_denormal() -> Iterator[Callable[[bool], None]]:
    def set_to(on: bool) -> None:
        if not torch.set_flush_denormal(on):
            pytest.skip("this CPU cannot flush denormals")

    yield set_to
    torch.set_flush_denormal(False)


def tiny(rng: torch.Generator, *shape: int) -> Tensor:
    """Values around the smallest FP32 numbers, most of them denormal."""
    return torch.randn(*shape, generator=rng) * 2.0**-130


def quantized_gemm(x: Tensor, w: Tensor) -> Tensor:
    return ops.gemm(*ops.quantize_tiles(x), *ops.quantize_blocks(w), out_dtype=torch.float32)


OPERATORS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "quantize_tiles": lambda x, w: ops.quantize_tiles(x),
    "quantize_tiles_both": lambda x, w: ops.quantize_tiles_both(x),
    "quantize_blocks": lambda x, w: ops.quantize_blocks(x),
    "quantize_e5m6": lambda x, w: ops.quantize_e5m6(x),
    "dequantize": lambda x, w: ops.dequantize_tiles(*ops.quantize_tiles(x)),
    "retile": lambda x, w: ops.retile(*ops.quantize_tiles(x)),
    "gemm": quantized_gemm,
    "gemm of one row": lambda x, w: quantized_gemm(x[:1], w),
}


def as_bytes(x: Tensor) -> Tensor:
    """The bits of x in row order, whatever its strides."""
    return x.clone(memory_format=torch.contiguous_format).view(torch.uint8)


@pytest.mark.parametrize("name", OPERATORS)
def test_same_bits_with_denormals_flushed(
    name: str, backend: str, rng: torch.Generator, flush_denormal: Callable[[bool], None]
) -> None:
    x, w = tiny(rng, 40, 300), torch.randn(70, 300, generator=rng) * 2.0**-6
    expected = OPERATORS[name](x, w)
    flush_denormal(True)
    flushes = float(torch.tensor([2.0**-130]) * 1.0) == 0.0
    got = OPERATORS[name](x, w)
    still_flushes = float(torch.tensor([2.0**-130]) * 1.0) == 0.0
    flush_denormal(False)
    assert flushes, "the test needs a thread that flushes"
    assert still_flushes, "an operator must leave the caller's setting as it was"
    one, other = (r if isinstance(r, tuple) else (r,) for r in (expected, got))
    for a, b in zip(one, other, strict=True):
        assert torch.equal(as_bytes(a), as_bytes(b))
