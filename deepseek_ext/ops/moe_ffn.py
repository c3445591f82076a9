"""The routed experts of one MoE layer in FP8, forward and backward, without a loop over experts.

T tokens of width H, K choices a token, M = T*K rows in expert order, E experts of width I. The passes are
compositions of operators, cut where work of another micro-batch, or an exchange between processes, can go
in between:

    forward   dispatch -> experts -> combine
    backward  combine_backward -> experts_dgrad -> dispatch_backward,
              and gate_up_wgrad and down_wgrad at any later time

Quantised (DeepSeek-V3, section 3.3): tokens in 1x128 tiles with power-of-two scales, once, before they are
copied to their experts; the product inside an expert; the output's gradient like the tokens. Kept for the
backward: the tiles of the tokens in token order, the tiles of gate_up, and the routing; rows are gathered
again and the product inside an expert is computed again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._checks import check_weight_codes, dtype_of, require_float32, require_weight_dtype, shape_of
from ._exchange import is_arrival, unpack_tiles
from ._kinds import explained, register_fake
from ._library import NAMESPACE
from ._transposed import transposed_weight
from .derivatives import differentiable, first_order_only
from .exchange import InFlight, Routing, combine_finish, dispatch_start, grad_edge, start_back
from .wgrad import accumulation, weight_gradient

_ops = torch.ops.deepseek_ext
WeightCodes = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


@explained
def moe_ffn(
    x: Tensor,
    weights: Tensor,
    indices: Tensor,
    gate_up: Tensor,
    down: Tensor,
    *,
    codes: WeightCodes | None = None,
    exchange: Routing | None = None,
) -> Tensor:
    """Sum over a token's experts of weight * down_e(silu(gate_e(x)) * up_e(x)), products in E4M3: [T, H].

    x: bfloat16 or float32 [T, H]; weights: float32 [T, K] and indices: int32 [T, K] from route (an index -1
    adds nothing). gate_up: [E, 2I, H], gate first, and down: [E, H, I], float32 or bfloat16; `codes` are
    their (codes, scales) from quantize_blocks, gate_up's pair first, for a layer that quantises once a
    step, and are made here if None. The result has x's dtype. Differentiable in x, weights, gate_up and
    down, once: weight gradients are summed in FP32, have their weight's dtype, and are not computed where not
    needed (under accumulate_weight_gradients they are added straight to `.grad`); experts without tokens get
    exact zeros.

    exchange: for experts on several ranks, the Routing that create_routing made of `indices`; gate_up and
    down then are the E / W experts of this rank. Tokens go to their experts and the output's gradient comes
    in E4M3, what returns has x's dtype. Raises ValueError for arguments that do not fit. Source: sections
    2.1.2, 3.2.2 and 3.3.
    """
    if exchange is not None:
        _check_experts("moe_ffn", x.shape[-1], gate_up, down)
        sent = dispatch_start(x, weights, exchange, quantise=True)
        return combine_finish(moe_ffn_experts(sent, gate_up, down, codes=codes))
    if codes is None:
        _check(x, weights, indices, gate_up, down)
        codes = _ops.quantize_blocks.default(gate_up.detach()), _ops.quantize_blocks.default(down.detach())
    return _moe_ffn(x, weights, indices, gate_up, down, *codes[0], *codes[1])[0]


def moe_ffn_experts(
    sent: InFlight, gate_up: Tensor, down: Tensor, *, codes: WeightCodes | None = None
) -> InFlight:
    """moe_ffn over several ranks, between dispatch_start(..., quantise=True) and combine_finish.

    What runs before it overlaps the tokens' way to their experts, and what runs after it their way back; in
    the backward its own weight gradients overlap the gradients' way home, and what ran after it overlaps
    their way here. gate_up: [E/W, 2I, H] and down: [E/W, H, I] are the experts of this rank.
    """
    _check_experts("moe_ffn", sent.columns, gate_up, down)
    routing = sent.routing
    if gate_up.shape[0] != routing.offs.shape[0]:
        raise ValueError(
            f"moe_ffn: gate_up must be the {routing.offs.shape[0]} experts of this rank, "
            f"got {gate_up.shape[0]}; slice them as ExpertGroup says"
        )
    if codes is None:
        codes = _ops.quantize_blocks.default(gate_up.detach()), _ops.quantize_blocks.default(down.detach())
    edge, flying, *lists = sent.finish("moe_ffn_experts")
    arguments = edge, flying, gate_up, down, *codes[0], *codes[1], *lists, sent.columns, sent.dtype
    edge, flying, *_ = _ops.moe_ffn_experts.default(*arguments)
    return InFlight(edge, flying, routing, sent.columns, sent.dtype, quantised=True)


class Rows(NamedTuple):
    """Tokens in expert order, as their experts read them."""

    codes: Tensor  # float8_e4m3fn [M, H]
    scales: Tensor  # float32 [M, ceil(H/128)]
    weights: Tensor  # float32 [M], 0 for rows past offs[-1]


class WgradOperands(NamedTuple):
    """What the weight gradients multiply: codes and scales, grouped transposed."""

    output: tuple[Tensor, Tensor]  # of down's input, I rows
    grad_gate_up: tuple[Tensor, Tensor]  # 2I rows


def dispatch(codes: Tensor, scales: Tensor, weights: Tensor, rows: Tensor) -> Rows:
    """Brings the tokens' tiles (codes [T, H] and their scales) and gate weights [T, K] into expert order."""
    row_codes, row_scales = _ops.gather_tiles.default(codes, scales, rows, weights.shape[1])
    row_weights = _ops.gather_rows.default(weights.reshape(-1, 1), rows, 1)
    return Rows(row_codes, row_scales, row_weights.view(-1))


def experts(
    rows: Rows, offs: Tensor, codes: WeightCodes, dtype: torch.dtype
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Every expert's FFN on its own rows: [M, H] in `dtype`, and the tiles of gate_up for the backward."""
    gate_up_codes, down_codes = codes
    gate_up = _ops.grouped_gemm.default(
        rows.codes, rows.scales, *gate_up_codes, offs, out_dtype=torch.bfloat16
    )
    product, scales, *cache = _ops.swiglu_quantize.default(gate_up, rows.weights, cache=True)
    out = _ops.grouped_gemm.default(product, scales, *down_codes, offs, out_dtype=dtype)
    return out, (cache[0], cache[1])


def combine(rows_out: Tensor, slots: Tensor) -> Tensor:
    """Each token's sum of its experts' rows, [T, H]."""
    return _ops.combine_rows.default(rows_out, slots)


def combine_backward(grad: Tensor, rows: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The output's gradient [T, H], quantised once a token, in expert order: codes and scales."""
    codes, scales = _ops.quantize_tiles.default(grad, power_of_2=True)
    return _ops.gather_tiles.default(codes, scales, rows, top_k)


def experts_dgrad(
    grad: tuple[Tensor, Tensor],
    cache: tuple[Tensor, Tensor],
    weights: Tensor,
    offs: Tensor,
    codes: WeightCodes,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, WgradOperands]:
    """Gradients of the rows [M, H] in `dtype` and of their gate weights [M], and what the wgrads multiply."""
    gate_up_codes, down_codes = codes
    grad_product = _ops.grouped_gemm.default(
        *grad, *transposed_weight(*down_codes), offs, out_dtype=torch.bfloat16
    )
    grad_gate_up, grad_weights, output = _ops.swiglu_backward.default(grad_product, *cache, weights)
    del grad_product  # each of these is as large as the rows: here is the peak of a step's memory
    tiles, scales, tiles_t, scales_t = _ops.quantize_tiles_both.default(grad_gate_up, offs)
    del grad_gate_up
    grad_rows = _ops.grouped_gemm.default(
        tiles, scales, *transposed_weight(*gate_up_codes), offs, out_dtype=dtype
    )
    output_t = _ops.quantize_tiles_transposed.default(output, offs)
    return grad_rows, grad_weights, WgradOperands(output_t, (tiles_t, scales_t))


def gate_up_wgrad(rows: Rows, operands: WgradOperands, offs: Tensor, into: Tensor | None = None) -> Tensor:
    """Gradient of gate_up [E, 2I, H] in FP32, added to `into` if that is given."""
    rows_t = _ops.retile.default(rows.codes, rows.scales, offs)
    return _grouped_wgrad(operands.grad_gate_up, rows_t, offs, into)


def down_wgrad(
    grad: tuple[Tensor, Tensor], operands: WgradOperands, offs: Tensor, into: Tensor | None = None
) -> Tensor:
    """Gradient of down [E, H, I] in FP32, added to `into` if that is given."""
    return _grouped_wgrad(_ops.retile.default(*grad, offs), operands.output, offs, into)


def _grouped_wgrad(
    grad_t: tuple[Tensor, Tensor], x_t: tuple[Tensor, Tensor], offs: Tensor, into: Tensor | None
) -> Tensor:
    if into is None:
        return _ops.grouped_gemm_wgrad.default(*grad_t, *x_t, offs)
    _ops.grouped_gemm_wgrad_accumulate_.default(into, *grad_t, *x_t, offs)
    return into


def dispatch_backward(grad_rows: Tensor, grad_weights: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the tokens [T, H] and of the gate weights [T, K], from those of the rows."""
    by_slot = _ops.gather_rows.default(grad_weights.view(-1, 1), slots.flatten(), 1)
    return _ops.combine_rows.default(grad_rows, slots), by_slot.view(slots.shape)


def _check(x: Tensor, weights: Tensor, indices: Tensor, gate_up: Tensor, down: Tensor) -> None:
    op = "moe_ffn"
    require_weight_dtype(op, "x", x)
    if x.dim() != 2:
        raise ValueError(f"{op}: x must be [T, H], got shape {shape_of(x)}; flatten the leading dimensions")
    if indices.dtype != torch.int32:
        raise ValueError(f"{op}: indices must be int32, got {dtype_of(indices)}; pass the indices of route")
    if indices.dim() != 2 or indices.shape[0] != x.shape[0] or indices.shape[1] == 0:
        raise ValueError(
            f"{op}: indices must be [T, K] with T = {x.shape[0]} and K >= 1, got {shape_of(indices)}; "
            "pass the indices of route for these tokens"
        )
    require_float32(op, "weights", weights, "pass the weights of route")
    if weights.shape != indices.shape:
        raise ValueError(
            f"{op}: weights must be [T, K] = {shape_of(indices)}, got {shape_of(weights)}; "
            "pass the weights that came with indices"
        )
    _check_experts(op, x.shape[1], gate_up, down)


def _check_experts(op: str, hidden: int, gate_up: Tensor, down: Tensor) -> None:
    require_weight_dtype(op, "gate_up", gate_up)
    require_weight_dtype(op, "down", down)
    if gate_up.dim() != 3 or gate_up.shape[0] == 0 or gate_up.shape[1] % 2 or gate_up.shape[2] != hidden:
        raise ValueError(
            f"{op}: gate_up must be [E, 2I, H], H = {hidden} as in x, got {shape_of(gate_up)}; "
            "stack each expert's gate over its up"
        )
    wanted = [gate_up.shape[0], hidden, gate_up.shape[1] // 2]
    if list(down.shape) != wanted:
        raise ValueError(
            f"{op}: down must be [E, H, I] = {wanted}, got {shape_of(down)}; stack the experts as in gate_up"
        )


def _forward(
    x: Tensor,
    weights: Tensor,
    indices: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_codes: Tensor,
    gate_up_scales: Tensor,
    down_codes: Tensor,
    down_scales: Tensor,
) -> tuple[Tensor, ...]:
    codes = (gate_up_codes, gate_up_scales), (down_codes, down_scales)
    _check(x, weights, indices, gate_up, down)
    check_weight_codes("moe_ffn", "gate_up", gate_up, *codes[0])
    check_weight_codes("moe_ffn", "down", down, *codes[1])
    tiles, scales = _ops.quantize_tiles.default(x, power_of_2=True)
    try:
        rows, slots, offs = _ops.expert_order.default(indices, gate_up.shape[0])
    except ValueError as error:  # an index of no expert
        raise ValueError(str(error).replace("expert_order", "moe_ffn", 1)) from None
    rows_out, cache = experts(dispatch(tiles, scales, weights, rows), offs, codes, x.dtype)
    return combine(rows_out, slots), tiles, scales, *cache, rows, slots, offs


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    x, weights, _, gate_up, down, *codes = inputs
    _, *saved = output
    ctx.mark_non_differentiable(*saved)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(weights, *codes, *saved)
    ctx.dtypes = x.dtype, gate_up.dtype, down.dtype
    ctx.accumulation = accumulation()


@first_order_only("moe_ffn")
def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 9
    weights, *tensors = ctx.saved_tensors
    codes = (tensors[0], tensors[1]), (tensors[2], tensors[3])
    tiles, scales, cache_codes, cache_scales, rows, slots, offs = tensors[4:]
    x_dtype = ctx.dtypes[0]
    arrived = dispatch(tiles, scales, weights, rows)
    grad_out = combine_backward(grad, rows, weights.shape[1])
    grad_rows, grad_row_weights, operands = experts_dgrad(
        grad_out, (cache_codes, cache_scales), arrived.weights, offs, codes, x_dtype
    )
    grad_x, grad_weights = dispatch_backward(grad_rows, grad_row_weights, slots)
    del grad_rows
    grads = _weight_gradients(ctx, 3, arrived, grad_out, operands, offs)
    return grad_x, grad_weights, None, *grads, None, None, None, None


def _weight_gradients(
    ctx: Any, first: int, rows: Rows, grad: tuple[Tensor, Tensor], operands: WgradOperands, offs: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """What a backward returns for gate_up and down, its arguments number `first` and the one after."""
    gate_up_dtype, down_dtype = ctx.dtypes[1:]
    grad_gate_up = grad_down = None
    if ctx.needs_input_grad[first]:

        def for_gate_up(into: Tensor | None) -> Tensor:
            return gate_up_wgrad(rows, operands, offs, into).to(gate_up_dtype)

        grad_gate_up = weight_gradient(ctx, first, ctx.accumulation, for_gate_up)
    if ctx.needs_input_grad[first + 1]:

        def for_down(into: Tensor | None) -> Tensor:
            return down_wgrad(grad, operands, offs, into).to(down_dtype)

        grad_down = weight_gradient(ctx, first + 1, ctx.accumulation, for_down)
    return grad_gate_up, grad_down


_NAME = f"{NAMESPACE}::moe_ffn"
torch.library.define(
    _NAME,
    "(Tensor x, Tensor weights, Tensor indices, Tensor gate_up, Tensor down, Tensor gate_up_codes, "
    "Tensor gate_up_scales, Tensor down_codes, Tensor down_scales) -> "
    "(Tensor out, Tensor codes, Tensor scales, Tensor cache_codes, Tensor cache_scales, "
    "Tensor rows, Tensor slots, Tensor offs)",
)
torch.library.impl(_NAME, "CompositeExplicitAutograd", _forward)
register_fake("moe_ffn", _forward)  # the operators it calls have fakes of their own
_moe_ffn = differentiable("moe_ffn", _backward, _setup_context)


# Over several ranks: the passes on the R rows that arrived, as they would be on T tokens of one rank. What
# comes in and what goes out is in flight, forward and backward.


def _forward_across(
    edge: Tensor,
    flying: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_codes: Tensor,
    gate_up_scales: Tensor,
    down_codes: Tensor,
    down_scales: Tensor,
    routing: list[Tensor],
    groups: list[str],
    columns: int,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    codes = (gate_up_codes, gate_up_scales), (down_codes, down_scales)
    check_weight_codes("moe_ffn", "gate_up", gate_up, *codes[0])
    check_weight_codes("moe_ffn", "down", down, *codes[1])
    *rows, arrived = _ops.exchange_tiles.default(flying, routing, groups, columns, True)
    rows_out, cache = experts(Rows(*rows), routing[2], codes, dtype)
    return *start_back(rows_out, routing, groups, quantised=True), arrived, *cache


def _setup_context_across(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, flying, gate_up, down, *codes, routing, groups, columns, dtype = inputs
    _, back, arrived, *cache = output
    ctx.mark_non_differentiable(back, arrived, *cache)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*codes, *cache, flying if is_arrival(groups) else arrived, *routing)
    ctx.groups, ctx.columns, ctx.dtypes = groups, columns, (dtype, gate_up.dtype, down.dtype)
    ctx.accumulation = accumulation()


@first_order_only("moe_ffn")
def _backward_across(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
    *tensors, packed = ctx.saved_tensors[:7]
    routing, groups = list(ctx.saved_tensors[7:]), ctx.groups
    nothing = [None] * len(routing)
    if grad is None:
        return *(None,) * 8, nothing, None, None, None
    codes = (tensors[0], tensors[1]), (tensors[2], tensors[3])
    dtype = ctx.dtypes[0]
    offs = routing[2]
    rows = Rows(*unpack_tiles(packed, routing, ctx.columns, True))
    *grad_out, _, _ = _ops.exchange_tiles.default(grad.view(torch.uint8), routing, groups, ctx.columns, False)
    grad_rows, grad_row_weights, operands = experts_dgrad(
        (grad_out[0], grad_out[1]), (tensors[4], tensors[5]), rows.weights, offs, codes, dtype
    )
    edge = None
    if ctx.needs_input_grad[0]:
        edge = grad_edge(grad_rows, grad_row_weights, routing, groups)  # on its way during the wgrads
    del grad_rows
    grads = _weight_gradients(ctx, 2, rows, (grad_out[0], grad_out[1]), operands, offs)
    return edge, None, *grads, *(None,) * 4, nothing, None, None, None


_NAME_ACROSS = f"{NAMESPACE}::moe_ffn_experts"
torch.library.define(
    _NAME_ACROSS,
    "(Tensor edge, Tensor flying, Tensor gate_up, Tensor down, Tensor gate_up_codes, Tensor gate_up_scales, "
    "Tensor down_codes, Tensor down_scales, Tensor[] routing, str[] groups, SymInt columns, ScalarType dtype)"
    " -> (Tensor edge, Tensor back, Tensor arrived, Tensor cache_codes, Tensor cache_scales)",
)
torch.library.impl(_NAME_ACROSS, "CompositeExplicitAutograd", _forward_across)
torch.library.register_fake(_NAME_ACROSS, _forward_across)
torch.library.register_autograd(_NAME_ACROSS, _backward_across, setup_context=_setup_context_across)
