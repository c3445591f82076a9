"""What torch.utils.flop_counter.FlopCounterMode counts for our products: two operations a multiply-add.

Of grouped products the rows that experts have, which are values of `offs`; of fake tensors, all there is
room for.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import register_flop_formula

_ops = torch.ops.deepseek_ext


@register_flop_formula(_ops.gemm)
def _gemm(a: torch.Size, a_scales: Any, b: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * prod(a) * b[0]


@register_flop_formula(_ops.gemm_accumulate_)
def _gemm_accumulate(out: torch.Size, a: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * prod(out) * a[1]


@register_flop_formula(_ops.fp8_linear)
def _fp8_linear(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * prod(x) * weight[0]


@register_flop_formula(_ops.grouped_gemm, get_raw=True)
def _grouped_gemm(a: Tensor, a_scales: Any, b: Tensor, b_scales: Any, offs: Tensor, **_: Any) -> int:
    return 2 * _rows(offs, a.shape[0]) * prod(b.shape[1:])


@register_flop_formula(_ops.grouped_gemm_wgrad, get_raw=True)
def _grouped_gemm_wgrad(
    a_t: Tensor, a_scales_t: Any, b_t: Tensor, b_scales_t: Any, offs: Tensor, **_: Any
) -> int:
    return 2 * _rows(offs, a_t.shape[1]) * a_t.shape[0] * b_t.shape[0]


@register_flop_formula(_ops.grouped_gemm_wgrad_accumulate_, get_raw=True)
def _grouped_gemm_wgrad_accumulate(out: Tensor, *operands: Any, **_: Any) -> int:
    return _grouped_gemm_wgrad(*operands)


@register_flop_formula(_ops.moe_ffn, get_raw=True)
def _moe_ffn(
    x: Any, weights: Any, indices: Tensor, gate_up: Tensor, down: Tensor, *_: Any, out_val: Any, **__: Any
) -> int:
    *_, offs = out_val
    return 2 * _rows(offs, indices.numel()) * (prod(gate_up.shape[1:]) + prod(down.shape[1:]))


# Of attention the whole matrix of scores, as torch counts its own.


@register_flop_formula(_ops.causal_attention)
def _causal_attention(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * prod(q[:3]) * q[2] * (q[3] + v[3])


@register_flop_formula(_ops.causal_attention_backward)
def _causal_attention_backward(
    grad: torch.Size, q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any
) -> int:
    return 2 * prod(q[:3]) * q[2] * (3 * q[3] + 2 * v[3])


def _rows(offs: Tensor, room: int) -> int:
    return room if isinstance(offs, FakeTensor) or not len(offs) else int(offs[-1])
