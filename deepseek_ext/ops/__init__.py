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

__all__ = [
    "cpu_capability",
    "fp8_linear",
    "gemm",
    "gemm_accumulate_",
    "grouped_gemm",
    "grouped_gemm_wgrad",
    "grouped_gemm_wgrad_accumulate_",
    "using_cpu_capability",
]
