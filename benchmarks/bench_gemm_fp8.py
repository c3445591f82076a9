"""The gemm family on a GPU against libraries that multiply FP8 in the same blocks: cuBLASLt and DeepGEMM.

    pytest benchmarks/bench_gemm_fp8.py --device cuda
    pytest benchmarks/bench_gemm_fp8.py --device simulator    # without a GPU, tiny shapes: does it all fit?

Shapes are (M, N, K) of DeepSeek-V3's layers at 4096 tokens and fewer. torch's scaled_mm (cuBLASLt,
on Hopper from CUDA 12.9 on) and DeepGEMM, where it is installed, get the same codes and scales in the layouts
they ask for, made before; results are compared. The goal is 0.9 of the faster one, and later 1.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek_ext import ops

DEVICES = ["cuda", "simulator"]
WEIGHTS = [(2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048)]
DENSE = [(m, n, k) for m in (4096, 128, 64) for n, k in WEIGHTS]
# Rows of each of the 8 experts on one of 32 ranks (on average its own tokens), N, K: up- and down-projection.
GROUPED = [(1024, 4096, 7168), (1024, 7168, 2048), (64, 4096, 7168), (64, 7168, 2048)]
EXPERTS = 8
DRY_DENSE, DRY_GROUPED = [(64, 128, 256)], [(16, 128, 256)]

Rivals = dict[str, Callable[[], Any]]
Operand = tuple[Tensor, Tensor]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    on_gpu = metafunc.config.getoption("--device") == "cuda"
    for name, shapes, dry in (("dense", DENSE, DRY_DENSE), ("grouped", GROUPED, DRY_GROUPED)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, shapes if on_gpu else dry, ids=lambda s: "x".join(map(str, s)))


def scaled_mm(a: Operand, b: Operand) -> Callable[[], Tensor]:
    """torch's call on tiles of a [M, K] and blocks of b [N, K]."""
    (a_codes, a_scales), (b_codes, b_scales) = a, b
    by_tile, by_block = F.ScalingType.BlockWise1x128, F.ScalingType.BlockWise128x128
    columns = a_scales.t().contiguous().t()  # M-major
    tiles = F.pad(b_scales, (0, -b_scales.shape[1] % 4)).t()  # [K / 128 in fours, N / 128], K-major
    return lambda: F.scaled_mm(a_codes, b_codes.t(), columns, by_tile, tiles, by_block)


def deep_gemm() -> Any:
    """The module, or None where it is not installed."""
    try:
        return importlib.import_module("deep_gemm")
    except ImportError:
        return None


def rivals(ours: Tensor, candidates: dict[str, Callable[[], Tensor]]) -> tuple[Rivals, dict[str, str]]:
    """Of the candidates those that run here and whose result is ours, and what keeps the others out."""
    running: Rivals = {}
    missing = {}
    for name, call in candidates.items():
        try:
            result = call().float()
        except Exception as error:
            missing[name] = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            continue
        off = (result - ours.float()).abs().max() / ours.float().abs().max()
        if off < 0.01:
            running[name] = call
        else:
            missing[name] = f"its result differs from ours by {off:.0%} of the largest"
    return running, missing


def test_gemm_fp8(dense: tuple[int, int, int], versus: Callable[..., Any]) -> None:
    m, n, k = dense
    x, w = torch.randn(m, k).bfloat16(), torch.randn(n, k).bfloat16()
    a, b = ops.quantize_tiles(x), ops.quantize_blocks(w)
    candidates = {"scaled_mm": scaled_mm(a, b)}
    library, out = deep_gemm(), torch.empty(m, n, dtype=torch.bfloat16)
    if library is not None:

        def theirs() -> Tensor:
            library.fp8_gemm_nt(a, (b[0], b[1].contiguous()), out)
            return out

        candidates["DeepGEMM"] = theirs
    running, missing = rivals(ops.gemm(*a, *b), candidates)
    running["torch bf16"] = lambda: x @ w.t()
    versus(lambda: ops.gemm(*a, *b), running, flops=2 * m * n * k, missing=missing)


def test_grouped_gemm_fp8(grouped: tuple[int, int, int], versus: Callable[..., Any]) -> None:
    """Every expert has the same number of rows, which DeepGEMM needs: multiples of 128 (and so not of 64)."""
    each, n, k = grouped
    m = EXPERTS * each
    x, w = torch.randn(m, k).bfloat16(), torch.randn(EXPERTS, n, k).bfloat16()
    a, b = ops.quantize_tiles(x), ops.quantize_blocks(w)
    offs = torch.arange(each, m + 1, each, dtype=torch.int32)
    candidates = {}
    library, out = deep_gemm(), torch.empty(m, n, dtype=torch.bfloat16)
    if library is not None and each % 128 == 0:
        expert = torch.arange(EXPERTS, dtype=torch.int32).repeat_interleave(each)

        def theirs() -> Tensor:
            library.m_grouped_fp8_gemm_nt_contiguous(a, (b[0], b[1].contiguous()), out, expert)
            return out

        candidates["DeepGEMM"] = theirs
    running, missing = rivals(ops.grouped_gemm(*a, *b, offs), candidates)
    running["grouped_mm bf16"] = lambda: F.grouped_mm(x, w.mT, offs=offs)
    versus(lambda: ops.grouped_gemm(*a, *b, offs), running, flops=2 * m * n * k, missing=missing)


def test_grouped_gemm_wgrad_fp8(grouped: tuple[int, int, int], versus: Callable[..., Any]) -> None:
    each, n, k = grouped
    m = EXPERTS * each
    grad, x = torch.randn(m, n).bfloat16(), torch.randn(m, k).bfloat16()
    offs = torch.arange(each, m + 1, each, dtype=torch.int32)
    a, b = ops.quantize_tiles_transposed(grad, offs), ops.quantize_tiles_transposed(x, offs)
    versus(
        lambda: ops.grouped_gemm_wgrad(*a, *b, offs),
        {"grouped_mm bf16": lambda: F.grouped_mm(grad.t(), x, offs=offs)},
        flops=2 * m * n * k,
    )
