"""The operators, one module per family; each is also `torch.ops.deepseek_ext.<name>`."""

from ._library import cpu_capability, using_cpu_capability
from .attention import causal_attention, causal_attention_backward
from .cross_entropy import cross_entropy_
from .fp8_linear import fp8_linear
from .gemm import (
    gemm,
    gemm_accumulate_,
    grouped_gemm,
    grouped_gemm_wgrad,
    grouped_gemm_wgrad_accumulate_,
)
from .moe_ffn import moe_ffn
from .norm import rms_norm, rms_norm_again, rms_norm_backward
from .optimizer import adamw_step_
from .permute import combine_rows, expert_order, gather_rows, gather_tiles
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
from .rope import rope_heads_, rope_heads_backward_
from .routing import route, sequence_balance_loss, update_router_bias_
from .swiglu import swiglu, swiglu_backward, swiglu_gradient, swiglu_quantize
from .wgrad import accumulate_weight_gradients

# isort: split
from . import _flops as _flops  # of the operators above

__all__ = [
    "accumulate_weight_gradients",
    "adamw_step_",
    "causal_attention",
    "causal_attention_backward",
    "combine_rows",
    "cpu_capability",
    "cross_entropy_",
    "dequantize_blocks",
    "dequantize_e5m6",
    "dequantize_tiles",
    "expert_order",
    "fp8_linear",
    "gather_rows",
    "gather_tiles",
    "gemm",
    "gemm_accumulate_",
    "grouped_gemm",
    "grouped_gemm_wgrad",
    "grouped_gemm_wgrad_accumulate_",
    "moe_ffn",
    "quantize_blocks",
    "quantize_e5m6",
    "quantize_tiles",
    "quantize_tiles_both",
    "quantize_tiles_transposed",
    "retile",
    "retile_e5m6",
    "rms_norm",
    "rms_norm_again",
    "rms_norm_backward",
    "rope_heads_",
    "rope_heads_backward_",
    "route",
    "sequence_balance_loss",
    "swiglu",
    "swiglu_backward",
    "swiglu_gradient",
    "swiglu_quantize",
    "transpose_blocks",
    "update_router_bias_",
    "using_cpu_capability",
]
