"""Quantisation against torch's plain cast and against what a user would compose, and against copy bandwidth.

Bytes are those that must move: the input read once, codes and scales written once. The goals, as shares of
the measured copy bandwidth for as many bytes: quantising 85 % beyond the last-level cache and 50 % inside,
retiling 35 % beyond. Neither the copy nor the operators pay for page faults (see keep_freed_memory).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek_ext import ops

E4M3 = torch.float8_e4m3fn
# Rows x columns: 2 million elements stay inside the last-level cache, 29 million leave it (V3's hidden size).
SIZES = {"inside": (1024, 2048), "beyond": (4096, 7168)}
QUANTIZE_GOAL = {"inside": 0.50, "beyond": 0.85}
RETILE_GOAL = {"inside": None, "beyond": 0.35}


def composed_tiles(x: Tensor) -> tuple[Tensor, Tensor]:
    """Tiles of 128, as one would write them in PyTorch."""
    tiles = x.unflatten(-1, (-1, 128)).float()
    scales = tiles.abs().amax(-1).clamp(min=1e-30) / 448
    return (tiles / scales[..., None]).flatten(-2).to(E4M3), scales


def composed_blocks(w: Tensor) -> tuple[Tensor, Tensor]:
    blocks = w.float().unflatten(-1, (-1, 128)).unflatten(0, (-1, 128))
    scales = blocks.abs().amax((1, 3)).clamp(min=1e-30) / 448
    return (blocks / scales[:, None, :, None]).view(w.shape).to(E4M3), scales


def composed_dequantize(codes: Tensor, scales: Tensor) -> Tensor:
    return (codes.float().unflatten(-1, (-1, 128)) * scales[..., None]).flatten(-2)


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def x(request: pytest.FixtureRequest, size: str) -> Tensor:
    return torch.randn(SIZES[size], generator=torch.Generator().manual_seed(0)).to(request.param)


def test_quantize_tiles(measure: Callable[..., None], threads: int, size: str, x: Tensor) -> None:
    rivals = {"cast": lambda: x.to(E4M3), "composed": lambda: composed_tiles(x)}
    measure(lambda: ops.quantize_tiles(x), rivals, [x], QUANTIZE_GOAL[size], rivals["composed"])


def test_quantize_blocks(measure: Callable[..., None], threads: int, size: str, x: Tensor) -> None:
    rivals = {"cast": lambda: x.to(E4M3), "composed": lambda: composed_blocks(x)}
    measure(lambda: ops.quantize_blocks(x), rivals, [x], QUANTIZE_GOAL[size], rivals["composed"])


def test_quantize_tiles_transposed(measure: Callable[..., None], threads: int, size: str, x: Tensor) -> None:
    rivals = {"composed": lambda: composed_tiles(x.T.contiguous())}
    measure(lambda: ops.quantize_tiles_transposed(x), rivals, [x], compiled=rivals["composed"])


def test_quantize_tiles_both(measure: Callable[..., None], threads: int, size: str, x: Tensor) -> None:
    rivals = {"composed": lambda: (composed_tiles(x), composed_tiles(x.T.contiguous()))}
    measure(lambda: ops.quantize_tiles_both(x), rivals, [x], compiled=rivals["composed"])


def test_quantize_e5m6(measure: Callable[..., None], threads: int, size: str, x: Tensor) -> None:
    measure(lambda: ops.quantize_e5m6(x), {"cast to half": lambda: x.to(torch.float16)}, [x])


def test_retile(measure: Callable[..., None], threads: int, size: str) -> None:
    codes, scales = ops.quantize_tiles(torch.randn(SIZES[size], generator=torch.Generator().manual_seed(0)))
    rivals = {"composed": lambda: composed_tiles(composed_dequantize(codes, scales).T.contiguous())}
    measure(lambda: ops.retile(codes, scales), rivals, [codes, scales], RETILE_GOAL[size], rivals["composed"])


def test_retile_e5m6(measure: Callable[..., None], threads: int, size: str) -> None:
    x = torch.randn(SIZES[size], generator=torch.Generator().manual_seed(0))
    packed, scales = ops.quantize_e5m6(x)
    half = x.half()
    rivals = {"composed from half": lambda: composed_tiles(half.float().T.contiguous())}
    measure(lambda: ops.retile_e5m6(packed, scales, x.shape[1]), rivals, [packed, scales])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["to_fp32", "to_bf16"])
def test_dequantize_tiles(measure: Callable[..., None], threads: int, size: str, dtype: torch.dtype) -> None:
    codes, scales = ops.quantize_tiles(torch.randn(SIZES[size], generator=torch.Generator().manual_seed(0)))
    rivals = {
        "cast": lambda: codes.to(dtype),
        "composed": lambda: composed_dequantize(codes, scales).to(dtype),
    }
    measure(
        lambda: ops.dequantize_tiles(codes, scales, dtype),
        rivals,
        [codes, scales],
        compiled=rivals["composed"],
    )


def test_dequantize_blocks(measure: Callable[..., None], threads: int, size: str) -> None:
    codes, scales = ops.quantize_blocks(torch.randn(SIZES[size], generator=torch.Generator().manual_seed(0)))

    def composed() -> Tensor:
        return composed_dequantize(codes, scales.repeat_interleave(128, 0))

    rivals = {"cast": lambda: codes.float(), "composed": composed}
    measure(lambda: ops.dequantize_blocks(codes, scales), rivals, [codes, scales], compiled=composed)


def test_dequantize_e5m6(measure: Callable[..., None], threads: int, size: str) -> None:
    """Against the cast from half, which is what 12 bits replace."""
    x = torch.randn(SIZES[size], generator=torch.Generator().manual_seed(0))
    packed, scales = ops.quantize_e5m6(x)
    half = x.half()
    measure(
        lambda: ops.dequantize_e5m6(packed, scales, x.shape[1]),
        {"cast from half": half.float},
        [packed, scales],
    )


def test_transpose_blocks(measure: Callable[..., None], threads: int, size: str) -> None:
    codes, scales = ops.quantize_blocks(torch.randn(SIZES[size], generator=torch.Generator().manual_seed(0)))
    rivals = {"composed": lambda: (codes.T.contiguous(), scales.T.contiguous())}
    measure(lambda: ops.transpose_blocks(codes, scales), rivals, [codes, scales])


def test_small_call(versus: Callable[..., Any], threads: int) -> None:
    """Overhead: one token of a small model."""
    x = torch.randn(1, 512, dtype=torch.bfloat16)
    rivals = {"cast": lambda: x.to(E4M3), "composed": lambda: composed_tiles(x)}
    versus(lambda: ops.quantize_tiles(x), rivals, from_host=True)
