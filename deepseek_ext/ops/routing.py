"""Which experts each token goes to, and what keeps them evenly loaded (DeepSeek-V3, section 2.1.2).

T tokens, E routed experts in n_groups groups of equal size, K = top_k experts a token.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._checks import dtype_of, require, require_float32, shape_of
from ._kinds import explained, register_fake
from .derivatives import differentiable, first_order_only

_ops = torch.ops.deepseek_ext


class Routed(NamedTuple):
    weights: Tensor  # float32 [T, K]: what each chosen expert's output is multiplied by
    indices: Tensor  # int32 [T, K]: the chosen experts, best first
    load: Tensor  # int32 [E]: how many valid tokens chose each expert


@explained
def route(
    logits: Tensor,
    bias: Tensor,
    *,
    top_k: int,
    n_groups: int,
    topk_groups: int,
    routed_scaling_factor: float,
    norm_topk_prob: bool = True,
    valid: Tensor | None = None,
) -> Routed:
    """Chooses top_k experts for each token, from the topk_groups best of n_groups groups.

    logits: float32 [T, E]; bias: float32 [E]; valid: bool [T], False for padding, which is routed but not
    counted in load. n_groups=1, topk_groups=1 routes without groups. Returns (weights float32 [T, K],
    indices int32 [T, K], best first, load int32 [E], how many valid tokens chose each expert).

    The choice is by sigmoid(logits) + bias; a group's score is the sum of its two largest choices (its only
    one, if it has one), and the experts of all other groups rank as -inf. Ties, of groups too, go to the
    lower index; a NaN choice ranks as -inf. weights are the chosen sigmoid(logits), without bias, divided by
    their sum + 1e-20 if norm_topk_prob, times routed_scaling_factor. No token is dropped. Differentiable in
    logits, through weights, once. The bits depend neither on the tier nor on the number of threads. Raises
    ValueError for arguments that do not fit. Source: equations 12 to 16.
    """
    return Routed(
        *_route(
            logits,
            bias,
            valid,
            top_k=top_k,
            n_groups=n_groups,
            topk_groups=topk_groups,
            routed_scaling_factor=routed_scaling_factor,
            norm_topk_prob=norm_topk_prob,
        )
    )


@explained
def update_router_bias_(bias: Tensor, load: Tensor, rate: float) -> None:
    """Moves the bias of overloaded experts down by `rate` and of underloaded ones up, in place.

    bias: float32 [..., E]; load: int32 or int64 [..., E], tokens per expert since the last update, leading
    dimensions being separate routers. bias[e] += rate where load[e] is below the router's mean, -= rate
    where above, unchanged where equal, compared exactly in int64. Raises ValueError for another dtype or
    shape. Source: section 2.1.2, auxiliary-loss-free load balancing.
    """
    _ops.update_router_bias_.default(bias, load, rate)


@explained
def sequence_balance_loss(
    logits: Tensor, indices: Tensor, *, num_sequences: int, alpha: float, valid: Tensor | None = None
) -> Tensor:
    """Mean over sequences of alpha * sum_e f_e P_e, a scalar that grows with imbalance inside a sequence.

    logits: float32 [N, E] and indices: int32 [N, K] from route, N tokens being num_sequences sequences of
    equal length one after the other; valid: bool [N], False for padding. f_e = E / (K T) * (how often e was
    chosen), P_e = the mean over tokens of s_e / sum s with s = sigmoid(logits); T counts a sequence's valid
    tokens, and a sequence without any adds 0 to the mean. num_sequences=1 balances the batch as a whole.
    Differentiable in logits, through P, once. Raises ValueError for arguments that do not fit and, on the CPU
    (on a GPU with DSE_CHECK=1), for indices outside [0, E). Source: equations 17 to 20.
    """
    return _sequence_balance_loss(logits, indices, valid, num_sequences=num_sequences, alpha=alpha)


# Checks, in the words of csrc/ops/routing.h: the fakes raise what the kernels raise (a test compares them).


def _check_logits(op: str, logits: Tensor) -> None:
    require_float32(op, "logits", logits, "compute the router in float32")
    require(
        logits.dim() == 2 and logits.shape[1] >= 1,
        f"{op}: logits must be [T, E] with E >= 1, got {shape_of(logits)}; flatten the leading dimensions",
    )


def _check_valid(op: str, valid: Tensor | None, tokens: int) -> None:
    if valid is None:
        return
    require(
        valid.dtype == torch.bool,
        f"{op}: valid must be bool, got {dtype_of(valid)}; compare it with 0",
    )
    require(
        valid.dim() == 1 and valid.shape[0] == tokens,
        f"{op}: valid must be [T] = [{tokens}], one for each token, got {shape_of(valid)}; "
        "flatten it as logits",
    )


def _check_indices(op: str, indices: Tensor, tokens: int) -> None:
    require(
        indices.dtype == torch.int32,
        f"{op}: indices must be int32, got {dtype_of(indices)}; pass the indices of route",
    )
    require(
        indices.dim() == 2 and indices.shape[0] == tokens and indices.shape[1] >= 1,
        f"{op}: indices must be [T, K] with T = {tokens} as in logits and K >= 1, got {shape_of(indices)}; "
        "pass the indices of route",
    )


def _route_fake(
    logits: Tensor,
    bias: Tensor,
    valid: Tensor | None = None,
    *,
    top_k: int,
    n_groups: int,
    topk_groups: int,
    routed_scaling_factor: float,
    norm_topk_prob: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_logits("route", logits)
    tokens, experts = logits.shape
    require_float32("route", "bias", bias, "keep the router's bias in float32")
    require(
        bias.dim() == 1 and bias.shape[0] == experts,
        f"route: bias must be [E] = [{experts}], one for each column of logits, got {shape_of(bias)}; "
        "pass this router's own bias",
    )
    require(
        n_groups >= 1 and experts % n_groups == 0,
        f"route: n_groups must divide the {experts} experts into groups of equal size, got {n_groups}; "
        "choose a divisor",
    )
    require(
        1 <= topk_groups <= n_groups,
        f"route: topk_groups must lie in [1, n_groups = {n_groups}], got {topk_groups}; "
        "n_groups keeps them all",
    )
    most = topk_groups * (experts // n_groups)
    require(
        1 <= top_k <= most,
        f"route: top_k must lie in [1, {most}], the experts of topk_groups = {topk_groups} groups, "
        f"got {top_k}; choose fewer experts or keep more groups",
    )
    _check_valid("route", valid, tokens)
    return (
        logits.new_empty(tokens, top_k),
        logits.new_empty(tokens, top_k, dtype=torch.int32),
        logits.new_empty(experts, dtype=torch.int32),
    )


def _route_backward_fake(
    grad_weights: Tensor,
    logits: Tensor,
    indices: Tensor,
    *,
    routed_scaling_factor: float,
    norm_topk_prob: bool,
) -> Tensor:
    op = "route_backward"
    _check_logits(op, logits)
    _check_indices(op, indices, logits.shape[0])
    require(
        grad_weights.dtype == torch.float32 and grad_weights.shape == indices.shape,
        f"{op}: grad_weights must be float32 {shape_of(indices)} as indices, got {dtype_of(grad_weights)} "
        f"{shape_of(grad_weights)}; pass the gradient of weights",
    )
    return logits.new_empty(logits.shape)


def _update_router_bias_fake(bias: Tensor, load: Tensor, rate: float) -> None:
    op = "update_router_bias_"
    require_float32(op, "bias", bias, "keep the router's bias in float32")
    require(
        load.dtype in (torch.int32, torch.int64),
        f"{op}: load must be int32 or int64, got {dtype_of(load)}; pass the token counts of route",
    )
    require(
        bias.dim() >= 1 and load.shape == bias.shape,
        f"{op}: load must have bias's shape [..., E], got {shape_of(load)} and {shape_of(bias)}; "
        "stack the counts of the routers as their biases are",
    )


def _check_balance(
    op: str, logits: Tensor, indices: Tensor, valid: Tensor | None, num_sequences: int
) -> None:
    _check_logits(op, logits)
    tokens = logits.shape[0]
    _check_indices(op, indices, tokens)
    require(
        num_sequences >= 1 and tokens % num_sequences == 0,
        f"{op}: num_sequences must divide the {tokens} tokens into sequences of equal length, "
        f"got {num_sequences}; pad them to one length, with valid = False",
    )
    _check_valid(op, valid, tokens)


def _balance_fake(
    logits: Tensor, indices: Tensor, valid: Tensor | None = None, *, num_sequences: int, alpha: float
) -> Tensor:
    _check_balance("sequence_balance_loss", logits, indices, valid, num_sequences)
    return logits.new_empty(())


def _balance_backward_fake(
    grad: Tensor,
    logits: Tensor,
    indices: Tensor,
    valid: Tensor | None = None,
    *,
    num_sequences: int,
    alpha: float,
) -> Tensor:
    op = "sequence_balance_loss_backward"
    _check_balance(op, logits, indices, valid, num_sequences)
    require(
        grad.dtype == torch.float32 and grad.dim() == 0,
        f"{op}: grad must be a float32 scalar, got {dtype_of(grad)} {shape_of(grad)}; "
        "pass the gradient of the loss",
    )
    return logits.new_empty(logits.shape)


def _route_setup(
    ctx: Any,
    inputs: tuple[Tensor, Tensor, Tensor | None],
    keyword_only_inputs: dict[str, Any],
    output: tuple[Tensor, ...],
) -> None:
    _, indices, load = output
    ctx.mark_non_differentiable(indices, load)
    ctx.set_materialize_grads(False)  # no zeros for them
    ctx.save_for_backward(inputs[0], indices)
    ctx.options = {name: keyword_only_inputs[name] for name in ("routed_scaling_factor", "norm_topk_prob")}


@first_order_only("route")
def _route_backward(ctx: Any, grad_weights: Tensor | None, *_: None) -> tuple[Tensor | None, None, None]:
    if grad_weights is None:
        return None, None, None
    return _ops.route_backward.default(grad_weights, *ctx.saved_tensors, **ctx.options), None, None


def _balance_setup(
    ctx: Any,
    inputs: tuple[Tensor, Tensor, Tensor | None],
    keyword_only_inputs: dict[str, Any],
    output: Tensor,
) -> None:
    ctx.save_for_backward(*inputs)
    ctx.options = {name: keyword_only_inputs[name] for name in ("num_sequences", "alpha")}


@first_order_only("sequence_balance_loss")
def _balance_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return _ops.sequence_balance_loss_backward.default(grad, *ctx.saved_tensors, **ctx.options), None, None


register_fake("route", _route_fake)
register_fake("route_backward", _route_backward_fake)
register_fake("update_router_bias_", _update_router_bias_fake)
register_fake("sequence_balance_loss", _balance_fake)
register_fake("sequence_balance_loss_backward", _balance_backward_fake)
_route = differentiable("route", _route_backward, _route_setup)
_sequence_balance_loss = differentiable("sequence_balance_loss", _balance_backward, _balance_setup)
