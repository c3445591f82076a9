"""Feed-forward layers: SwiGLU, and the mixture of shared and routed experts (paper, section 2.1.2).

Shapes: B sequences, T tokens of a call in all, H hidden, I expert width, E routed experts, K experts a token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..config import ModelConfig
from ..ops.derivatives import first_order_only
from ..ops.exchange import (
    ExpertGroup,
    InFlight,
    combine_finish,
    combine_start,
    create_routing,
    dispatch_finish,
    dispatch_start,
)
from ..ops.moe_ffn import WeightCodes, moe_ffn_experts
from ..ops.wgrad import accumulation
from .context import Context
from .derived import Derived
from .linear import Linear, Precision, bf16_copy, product, stand_in
from .matmul import factor
from .product import (
    Fp8Product,
    Operand,
    PlainProduct,
    Product,
    input_again,
    product_backward,
    weight_gradients,
)
from .recompute import Recomputed, save_groups, saved_groups

_ops = torch.ops.deepseek_ext


class Begun(NamedTuple):
    """A SwiGLU's forward pass before its last product."""

    x: Recomputed
    gate_up: Product
    hidden: Operand
    """silu(gate(x)) * up(x) as down reads it."""
    kept: Operand
    """What backward needs of gate and up's output; nothing if none may follow."""


class SwiGLU(Derived):
    """down(silu(gate(x)) * up(x)), the dense FFN and the shared expert; gate and up run as one product."""

    power_of_2 = False  # as Linear's

    def __init__(self, hidden: int, width: int, precision: Precision) -> None:
        super().__init__()
        self.precision = precision
        self.gate_proj = Linear(hidden, width, precision)
        self.up_proj = Linear(hidden, width, precision)
        self.down_proj = Linear(width, hidden, precision)

    def gate_up(self) -> Product:
        gate, up = self.gate_proj.weight, self.up_proj.weight
        return product(self, self.precision, gate, up, power_of_2=self.power_of_2)

    def begin(self, x: Recomputed) -> Begun:
        """The first part of `forward`, which then takes its result."""
        gate_up, keep = self.gate_up(), torch.is_grad_enabled()
        with torch.no_grad():  # the whole has one derivative, that of _SwiGLU
            rows = x.value.flatten(0, -2)
            output = gate_up.fprop(gate_up.operand(rows), x.value.dtype)
            return Begun(x, gate_up, *_activate(self.down_proj.product(), output, keep))

    def forward(self, x: Recomputed | Begun) -> Tensor:
        begun = x if isinstance(x, Begun) else self.begin(x)
        gate, up, down = self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight
        return _SwiGLU.apply(begun.x.value, gate, up, down, begun, self.down_proj.product())


class _SwiGLU(torch.autograd.Function):
    """x [..., H] to the same shape; saves what x is computed again from, and the output of gate and up.

    Where `down` runs in FP8 that output is kept in E4M3 tiles, and so enters the gradient of the activation
    (paper, section 3.3.3).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *args: Any) -> Tensor:
        *_, begun, down = args
        if begun.kept:
            save_groups(ctx, begun.kept, begun.x.kept)
            ctx.again, ctx.gate_up, ctx.down = begun.x.again, begun.gate_up, down
            ctx.accumulation = accumulation()
        return down.fprop(begun.hidden, x.dtype).view(x.shape)

    @staticmethod
    @first_order_only("SwiGLU")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate_up, down = ctx.gate_up, ctx.down
        kept, x_kept = saved_groups(ctx)
        operand, operand_t = down.grad_operands(grad.flatten(0, -2))
        grad_gate_up, hidden_t = _activate_backward(down, down.dgrad(operand, grad.dtype), kept)
        grad_down = weight_gradients(ctx, down, {3: grad.shape[-1]}, operand_t, hidden_t)
        x_t = partial(input_again, ctx.again, x_kept, gate_up)
        width = grad_gate_up.shape[1] // 2
        grad_x, grads = product_backward(ctx, gate_up, {1: width, 2: width}, grad_gate_up, x_t, grad.dtype)
        return grad_x.view(grad.shape), *grads, *grad_down, None, None


def _activate(down: Product, gate_up: Tensor, keep: bool) -> tuple[Operand, Operand]:
    """silu(gate) * up as `down` reads it, and what is kept of gate_up [M, 2I] if a backward may follow."""
    if isinstance(down, Fp8Product):
        codes, scales, *kept = ops.swiglu_quantize(gate_up, cache=keep)
        return (codes, scales), tuple(kept)
    return down.operand(ops.swiglu(gate_up)), (gate_up,) if keep else ()


def _activate_backward(down: Product, grad: Tensor, kept: Operand) -> tuple[Tensor, Callable[[], Operand]]:
    """The gradient of gate_up [M, 2I] from that of silu(gate) * up; and the latter as wgrad reads it."""
    if isinstance(down, Fp8Product):
        grad_gate_up, _, hidden = ops.swiglu_backward(grad, *kept)
        return grad_gate_up, partial(ops.quantize_tiles_transposed, hidden)
    gate_up = kept[0].detach().requires_grad_()
    with torch.enable_grad():
        hidden = ops.swiglu(gate_up)
    (grad_gate_up,) = torch.autograd.grad(hidden, gate_up, grad)
    return grad_gate_up, lambda: down.transposed(down.operand(hidden.detach()))


class DenseFFN(SwiGLU):
    """The FFN of the first blocks; has no router, hence no balance loss."""

    def __init__(self, config: ModelConfig, precision: Precision) -> None:
        super().__init__(config.hidden_size, config.intermediate_size, precision)

    def forward(self, x: Recomputed, context: Context) -> tuple[Tensor, None]:  # type: ignore[override]
        return super().forward(x), None


class _Routing(NamedTuple):
    """How a router chooses, and whether it tells how evenly: arguments of the operators."""

    bias: Tensor
    valid: Tensor | None
    route: dict[str, Any]
    balance: dict[str, Any] | None


class _Route(torch.autograd.Function):
    """x [..., H] to gate weights, experts, load and, if asked for, the balance loss (eq. 12 to 20).

    Saves the logits, FP32 whatever the precision, and what x is computed again from.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, source: Recomputed, how: _Routing) -> tuple[Any, ...]:
        by = PlainProduct(weight.detach())
        logits = by.fprop(by.operand(x.flatten(0, -2)), torch.float32)
        weights, indices, load = ops.route(logits, how.bias, valid=how.valid, **how.route)
        loss = None
        if how.balance is not None:
            loss = ops.sequence_balance_loss(logits, indices, valid=how.valid, **how.balance)
        ctx.mark_non_differentiable(indices, load)
        ctx.set_materialize_grads(False)
        save_groups(ctx, (logits, indices), source.kept)
        ctx.by, ctx.how, ctx.again, ctx.x = by, how, source.again, (x.shape, x.dtype)
        ctx.accumulation = accumulation()
        return weights, indices, load, loss

    @staticmethod
    @first_order_only("Router")
    def backward(ctx: Any, grad_weights: Tensor | None, *rest: Tensor | None) -> tuple[Tensor | None, ...]:
        by, how, grad_loss = ctx.by, ctx.how, rest[2]
        routed, kept = saved_groups(ctx)
        grads: list[Tensor] = []
        if grad_weights is not None:
            options = {name: how.route[name] for name in ("routed_scaling_factor", "norm_topk_prob")}
            grads.append(_ops.route_backward.default(grad_weights, *routed, **options))
        if grad_loss is not None:
            backward = _ops.sequence_balance_loss_backward.default
            grads.append(backward(grad_loss, *routed, how.valid, **how.balance))
        if not grads:
            return None, None, None, None
        grad, *more = grads
        for part in more:
            grad.add_(part)
        shape, dtype = ctx.x
        x_t = partial(input_again, ctx.again, kept, by)
        grad_x, grad_weight = product_backward(ctx, by, {1: grad.shape[1]}, grad, x_t, dtype)
        return grad_x.view(shape), *grad_weight, None, None


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

    def forward(self, x: Recomputed, context: Context) -> tuple[Tensor, Tensor, Tensor | None]:
        """x [B, T/B, H] to gate weights FP32 [T, K], experts int32 [T, K], and the balance loss if wanted."""
        c, balance = self.config, None
        if context.balance_alpha:
            sequences = 1 if c.balance_loss == "batch" else x.value.shape[0]
            balance = {"num_sequences": sequences, "alpha": context.balance_alpha}
        route = {
            "top_k": c.num_experts_per_tok,
            "n_groups": c.n_group,
            "topk_groups": c.topk_group,
            "routed_scaling_factor": c.routed_scaling_factor,
            "norm_topk_prob": c.norm_topk_prob,
        }
        valid = None if context.valid is None else context.valid.flatten()
        how = _Routing(self.e_score_correction_bias, valid, route, balance)
        weights, indices, load, loss = _Route.apply(x.value, self.weight, x, how)
        if self.training:
            self.load += load
        return weights, indices, loss

    @torch.no_grad()
    def update_bias(self, rate: float) -> None:
        """Moves overloaded experts' bias down by `rate`, underloaded ones' up, and restarts the count."""
        ops.update_router_bias_(self.e_score_correction_bias, self.load, rate)
        self.load.zero_()


Work = Callable[[], None]


def _nothing() -> None:
    pass


class Experts(Derived):
    """The routed experts: gate_up [E, 2I, H] (gate first) and down [E, H, I].

    With a `group` they are spread over its ranks, and those of this rank are held here.
    """

    power_of_2 = False  # as Linear's
    group: ExpertGroup | None = None

    def __init__(self, config: ModelConfig, precision: Precision) -> None:
        super().__init__()
        check_widths(config, precision)
        self.precision = precision
        experts, width, hidden = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down = nn.Parameter(torch.empty(experts, hidden, width))

    def forward(
        self, x: Tensor, weights: Tensor, indices: Tensor, meanwhile: tuple[Work, Work] | None = None
    ) -> Tensor:
        """Each token's weighted sum over its experts: x [T, H], weights and indices [T, K] to [T, H].

        With a group, all its ranks must come here the same number of times, in the same order of layers.
        meanwhile: what to call then while tokens are on their way to their experts, and on their way back.
        """
        if self.group is not None:
            return self._across(self.group, x, weights, indices, meanwhile or (_nothing, _nothing))
        if self.precision == "fp8":
            return ops.moe_ffn(x, weights, indices, self.gate_up, self.down, codes=self._codes())
        rows, slots, offs = ops.expert_order(indices, self.gate_up.shape[0])
        gate_up, down = self._factors()
        x_rows = ops.gather_rows(x.to(gate_up.dtype), rows, indices.shape[1])
        weights_rows = weights.flatten().index_select(0, rows)
        out = _products(x_rows, weights_rows, offs, gate_up, down)
        return ops.combine_rows(out, slots).to(x.dtype)

    def _across(
        self,
        group: ExpertGroup,
        x: Tensor,
        weights: Tensor,
        indices: Tensor,
        meanwhile: tuple[Work, Work],
    ) -> Tensor:
        routing = create_routing(indices, self.gate_up.shape[0] * group.size, group)
        sent = dispatch_start(x, weights, routing, quantise=self.precision == "fp8")
        meanwhile[0]()
        back = self._arrived(sent)
        meanwhile[1]()
        return combine_finish(back)

    def _arrived(self, sent: InFlight) -> InFlight:
        """What the experts here make of rows that come; on its way back."""
        if self.precision == "fp8":
            return moe_ffn_experts(sent, self.gate_up, self.down, codes=self._codes())
        rows, weights, offs = dispatch_finish(sent)
        gate_up, down = self._factors()
        out = _products(rows.to(gate_up.dtype), weights, offs, gate_up, down)
        return combine_start(out.to(sent.dtype), sent.routing)

    def _codes(self) -> WeightCodes:
        make = partial(_fp8_codes, power_of_2=self.power_of_2)
        return self.derive(make, self.gate_up, self.down)

    def _factors(self) -> tuple[Tensor, Tensor]:
        """Both weights in the dtype that they multiply in."""
        values = self.gate_up.detach(), self.down.detach()
        if self.precision == "bf16":
            values = self.derive(_bf16_copies, self.gate_up, self.down)
        return stand_in(values[0], self.gate_up), stand_in(values[1], self.down)


def check_widths(config: ModelConfig, precision: Precision) -> None:
    """Raises ValueError where torch's grouped_mm, which wants rows of whole 16 bytes, cannot multiply."""
    quantum = {"fp8": 1, "bf16": 8, "fp32": 4}[precision]
    for name in ("hidden_size", "moe_intermediate_size"):
        if (width := getattr(config, name)) % quantum:
            raise ValueError(
                f"DeepseekV3: precision {precision} needs {name} to be a multiple of {quantum}, got "
                f"{width}; write {quantum * -(-width // quantum)}, or precision fp8"
            )


def _products(rows: Tensor, weights: Tensor, offs: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Every expert's FFN on its rows [M, H], times their gate weights [M], by torch."""
    product = F.grouped_mm(factor(rows), factor(gate_up).mT, offs=offs).to(rows.dtype)
    hidden = ops.swiglu(product, weights)
    return F.grouped_mm(factor(hidden), factor(down).mT, offs=offs).to(rows.dtype)


def _fp8_codes(gate_up: Tensor, down: Tensor, *, power_of_2: bool) -> WeightCodes:
    quantise = partial(ops.quantize_blocks, power_of_2=power_of_2)
    return quantise(gate_up), quantise(down)


def _bf16_copies(gate_up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    return bf16_copy(gate_up), bf16_copy(down)


class _Shared:
    """The shared expert of one pass, in two parts or at once."""

    def __init__(self, expert: SwiGLU, x: Recomputed) -> None:
        self._expert, self._x = expert, x
        self._begun: Begun | None = None
        self._result: Tensor | None = None

    def begin(self) -> None:
        self._begun = self._expert.begin(self._x)

    def end(self) -> None:
        self._result = self._expert(self._x if self._begun is None else self._begun)

    def result(self) -> Tensor:
        if self._result is None:
            self.end()
        assert self._result is not None
        return self._result


class MoE(nn.Module):
    """Routed plus shared experts: x [B, T/B, H] to the same shape, and the balance loss if asked for."""

    def __init__(self, config: ModelConfig, precision: Precision) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config, precision)
        width = config.n_shared_experts * config.moe_intermediate_size
        self.shared_experts = SwiGLU(config.hidden_size, width, precision) if width else None

    def forward(self, x: Recomputed, context: Context) -> tuple[Tensor, Tensor | None]:
        weights, indices, balance = self.gate(x, context)
        shared = None if self.shared_experts is None else _Shared(self.shared_experts, x)
        meanwhile = None if shared is None else (shared.begin, shared.end)
        y = self.experts(x.value.flatten(0, 1), weights, indices, meanwhile).view(x.value.shape)
        return y if shared is None else y + shared.result(), balance
