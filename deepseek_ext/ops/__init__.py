"""The operators, one module per family; each is also `torch.ops.deepseek_ext.<name>`."""

from ._library import cpu_capability, using_cpu_capability
from .fp8_linear import fp8_linear
from .gemm import (
    gemm,
    gemm_accumulate_,
    grouped_gemm,
    grouped_gemm_wgrad,
    grouped_gemm_wgrad_accumulate_,
)
from .quantize import (
    dequantize_blocks,
    dequantize_e5m6,
    dequantize_tiles,
    quantize_blocks,
    quantize_e5m6,
    quantize_tiles,
    quantize_tiles_both,
    quantize_tiles_transposed,
    retile,
    retile_e5m6,
    transpose_blocks,
)

__all__ = [
    "cpu_capability",
    "dequantize_blocks",
    "dequantize_e5m6",
    "dequantize_tiles",
    "fp8_linear",
    "gemm",
    "gemm_accumulate_",
    "grouped_gemm",
    "grouped_gemm_wgrad",
    "grouped_gemm_wgrad_accumulate_",
    "quantize_blocks",
    "quantize_e5m6",
    "quantize_tiles",
    "quantize_tiles_both",
    "quantize_tiles_transposed",
    "retile",
    "retile_e5m6",
    "transpose_blocks",
    "using_cpu_capability",
]
