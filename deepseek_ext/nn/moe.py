"""Feed-forward layers: SwiGLU, and the mixture of shared and routed experts (paper, section 2.1.2).

Shapes: B sequences, T tokens of a call in all, H hidden, I expert width, E routed experts, K experts a token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..config import ModelConfig
from .context import Context
from .linear import Derived, Linear, Precision, bf16_copy, linear, stand_in


class SwiGLU(Derived):
    """down(silu(gate(x)) * up(x)), the dense FFN and the shared expert; gate and up run as one product."""

    def __init__(self, hidden: int, width: int, precision: Precision) -> None:
        super().__init__()
        self.precision = precision
        self.gate_proj = Linear(hidden, width, precision)
        self.up_proj = Linear(hidden, width, precision)
        self.down_proj = Linear(width, hidden, precision)

    def forward(self, x: Tensor) -> Tensor:
        gate_up = linear(self, self.precision, x, self.gate_proj.weight, self.up_proj.weight)
        return self.down_proj(ops.swiglu(gate_up))


class DenseFFN(SwiGLU):
    """The FFN of the first blocks; has no router, hence no balance loss."""

    def __init__(self, config: ModelConfig, precision: Precision) -> None:
        super().__init__(config.hidden_size, config.intermediate_size, precision)

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, None]:  # type: ignore[override]
        return super().forward(x.flatten(0, 1)).view(x.shape), None


class Router(nn.Module):
    """Chooses K experts a token by biased sigmoid scores within groups, without auxiliary loss (eq. 12-16).

    Runs in FP32 whatever the precision. `load` counts the tokens that each expert got in training mode since
    the bias was last updated.
    """

    e_score_correction_bias: Tensor
    load: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        experts = config.n_routed_experts
        self.weight = nn.Parameter(torch.empty(experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(experts, dtype=torch.float32))
        self.register_buffer("load", torch.zeros(experts, dtype=torch.int32), persistent=False)

    def forward(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """x [T, H] to logits FP32 [T, E], and per token gate weights FP32 and experts int32 [T, K]."""
        c = self.config
        logits = F.linear(x.float(), self.weight)
        weights, indices, load = ops.route(
            logits,
            self.e_score_correction_bias,
            top_k=c.num_experts_per_tok,
            n_groups=c.n_group,
            topk_groups=c.topk_group,
            routed_scaling_factor=c.routed_scaling_factor,
            norm_topk_prob=c.norm_topk_prob,
            valid=valid,
        )
        if self.training:
            self.load += load
        return logits, weights, indices

    @torch.no_grad()
    def update_bias(self, rate: float) -> None:
        """Moves overloaded experts' bias down by `rate`, underloaded ones' up, and restarts the count."""
        ops.update_router_bias_(self.e_score_correction_bias, self.load, rate)
        self.load.zero_()


class Experts(Derived):
    """The routed experts: gate_up [E, 2I, H] (gate first) and down [E, H, I]."""

    def __init__(self, config: ModelConfig, precision: Precision) -> None:
        super().__init__()
        self.precision = precision
        experts, width, hidden = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down = nn.Parameter(torch.empty(experts, hidden, width))

    def forward(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        """Each token's weighted sum over its experts: x [T, H], weights and indices [T, K] to [T, H]."""
        if self.precision == "fp8":
            codes = self.derive(_fp8_codes, self.gate_up, self.down)
            return ops.moe_ffn(x, weights, indices, self.gate_up, self.down, codes=codes)
        gate_up: Tensor = self.gate_up
        down: Tensor = self.down
        if self.precision == "bf16":
            copies = self.derive(_bf16_copies, gate_up, down)
            gate_up, down = stand_in(copies[0], gate_up), stand_in(copies[1], down)
        rows, slots, offs = ops.expert_order(indices, gate_up.shape[0])
        x_rows = ops.gather_rows(x.to(gate_up.dtype), rows, indices.shape[1])
        weights_rows = weights.flatten().index_select(0, rows)
        hidden = ops.swiglu(F.grouped_mm(x_rows, gate_up.mT, offs=offs), weights_rows)
        return ops.combine_rows(F.grouped_mm(hidden, down.mT, offs=offs), slots).to(x.dtype)


def _fp8_codes(gate_up: Tensor, down: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return ops.quantize_blocks(gate_up), ops.quantize_blocks(down)


def _bf16_copies(gate_up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    return bf16_copy(gate_up), bf16_copy(down)


class MoE(nn.Module):
    """Routed plus shared experts: x [B, T/B, H] to the same shape, and the balance loss if asked for."""

    def __init__(self, config: ModelConfig, precision: Precision) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config, precision)
        width = config.n_shared_experts * config.moe_intermediate_size
        self.shared_experts = SwiGLU(config.hidden_size, width, precision) if width else None

    def forward(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor | None]:
        tokens = x.flatten(0, 1)
        valid = None if context.valid is None else context.valid.flatten()
        logits, weights, indices = self.gate(tokens, valid)
        y = self.experts(tokens, weights, indices)
        if self.shared_experts is not None:
            y = y + self.shared_experts(tokens)
        balance = None
        if context.balance_alpha:
            balance = ops.sequence_balance_loss(
                logits, indices, num_sequences=x.shape[0], alpha=context.balance_alpha, valid=valid
            )
        return y.view(x.shape), balance
