"""Which experts each token goes to, and what keeps them evenly loaded (DeepSeek-V3, section 2.1.2).

T tokens, E routed experts in n_groups groups of equal size, K = top_k experts a token.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..reference import routing as reference
from ._checks import dtype_of, shape_of
from ._library import NAMESPACE, serve_by_reference

_ops = torch.ops.deepseek_ext


class Routed(NamedTuple):
    weights: Tensor  # float32 [T, K]: what each chosen expert's output is multiplied by
    indices: Tensor  # int32 [T, K]: the chosen experts, best first
    load: Tensor  # int32 [E]: how many valid tokens chose each expert


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
    """Chooses top_k experts for each token, from its topk_groups best groups: (weights, indices, load).

    logits: float32 [T, E]; bias: float32 [E]; valid: bool [T], False for padding, which is routed but not
    counted in load. The choice is by sigmoid(logits) + bias; a group's score is the sum of its two largest
    choices (its only one, if it has one), and the experts of all other groups rank as -inf. Ties, of groups
    too, go to the lower index; a NaN choice ranks as -inf. weights are the chosen sigmoid(logits), without
    bias, divided by their sum + 1e-20 if norm_topk_prob, times routed_scaling_factor. No token is dropped.
    Differentiable in logits, through weights. Raises ValueError for arguments that do not fit. Source:
    equations 12 to 16.
    """
    return Routed(
        *_ops.route.default(
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


def update_router_bias_(bias: Tensor, load: Tensor, rate: float) -> None:
    """Moves the bias of overloaded experts down by `rate` and of underloaded ones up, in place.

    bias: float32 [..., E]; load: int32 or int64 [..., E], tokens per expert since the last update, leading
    dimensions being separate routers. bias[e] += rate where load[e] is below the router's mean, -= rate
    where above, unchanged where equal, compared exactly in int64. Raises ValueError for another dtype or
    shape. Source: section 2.1.2, auxiliary-loss-free load balancing.
    """
    _ops.update_router_bias_.default(bias, load, rate)


def sequence_balance_loss(
    logits: Tensor, indices: Tensor, *, num_sequences: int, alpha: float, valid: Tensor | None = None
) -> Tensor:
    """Mean over sequences of alpha * sum_e f_e P_e, a scalar that grows with imbalance inside a sequence.

    logits: float32 [N, E] and indices: int32 [N, K] from route, N tokens being num_sequences sequences of
    equal length one after the other; valid: bool [N], False for padding. f_e = E / (K T) * (tokens that
    chose e), P_e = the mean over tokens of s_e / sum s with s = sigmoid(logits); T counts a sequence's
    valid tokens, and a sequence without any adds 0 to the mean. num_sequences=1 balances the batch as a
    whole. Differentiable in logits, through P. Raises ValueError for arguments that do not fit. Source:
    equations 17 to 20.
    """
    return _ops.sequence_balance_loss.default(
        logits, indices, valid, num_sequences=num_sequences, alpha=alpha
    )


def _check_logits(op: str, logits: Tensor) -> None:
    if logits.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{op}: logits must be float32, got {dtype_of(logits)}; compute the router in float32"
        )
    if logits.dim() != 2:
        raise ValueError(
            f"{op}: logits must be [T, E], got shape {shape_of(logits)}; flatten the leading dimensions"
        )


def _check_valid(op: str, valid: Tensor | None, tokens: int) -> None:
    if valid is None:
        return
    if valid.dtype != torch.bool:
        raise ValueError(f"{op}: valid must be bool, got {dtype_of(valid)}")
    if valid.dim() != 1 or valid.shape[0] != tokens:
        raise ValueError(f"{op}: valid must be [T] = [{tokens}], one for each token, got {shape_of(valid)}")


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
    if bias.dtype != torch.float32 and bias.dtype != logits.dtype:
        raise ValueError(
            f"route: bias must be float32, got {dtype_of(bias)}; keep the router's bias in float32"
        )
    if bias.dim() != 1 or bias.shape[0] != experts:
        raise ValueError(f"route: bias must be [E] = [{experts}], got {shape_of(bias)}")
    if n_groups < 1 or experts % n_groups != 0:
        raise ValueError(
            f"route: n_groups must divide the {experts} experts into groups of equal size, got {n_groups}"
        )
    if not 1 <= topk_groups <= n_groups:
        raise ValueError(f"route: topk_groups must lie in [1, n_groups = {n_groups}], got {topk_groups}")
    most = topk_groups * (experts // n_groups)
    if not 1 <= top_k <= most:
        raise ValueError(
            f"route: top_k must lie in [1, {most}], the experts of topk_groups = {topk_groups} groups, "
            f"got {top_k}"
        )
    _check_valid("route", valid, tokens)
    weights = logits.new_empty(tokens, top_k)
    return (
        weights,
        weights.new_empty(tokens, top_k, dtype=torch.int32),
        weights.new_empty(experts, dtype=torch.int32),
    )


def _update_router_bias_fake(bias: Tensor, load: Tensor, rate: float) -> None:
    op = "update_router_bias_"
    if bias.dtype != torch.float32:
        raise ValueError(
            f"{op}: bias must be float32, got {dtype_of(bias)}; keep the router's bias in float32"
        )
    if load.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"{op}: load must be int32 or int64, got {dtype_of(load)}; pass the token counts of route"
        )
    if bias.dim() < 1 or load.shape != bias.shape:
        raise ValueError(
            f"{op}: load must have bias's shape [..., E], got {shape_of(load)} and {shape_of(bias)}"
        )


def _balance_fake(
    logits: Tensor, indices: Tensor, valid: Tensor | None = None, *, num_sequences: int, alpha: float
) -> Tensor:
    op = "sequence_balance_loss"
    _check_logits(op, logits)
    tokens = logits.shape[0]
    if indices.dtype != torch.int32:
        raise ValueError(f"{op}: indices must be int32, got {dtype_of(indices)}; pass the indices of route")
    if indices.dim() != 2 or indices.shape[0] != tokens:
        raise ValueError(
            f"{op}: indices must be [T, K] with T = {tokens} as in logits, got {shape_of(indices)}"
        )
    if num_sequences < 1 or tokens % num_sequences != 0:
        raise ValueError(
            f"{op}: num_sequences must divide the {tokens} tokens into sequences of equal length, "
            f"got {num_sequences}"
        )
    _check_valid(op, valid, tokens)
    return logits.new_empty(())


def _route_setup(
    ctx: Any,
    inputs: tuple[Tensor, Tensor, Tensor | None],
    keyword_only_inputs: dict[str, Any],
    output: tuple[Tensor, ...],
) -> None:
    _, indices, load = output
    ctx.mark_non_differentiable(indices, load)
    ctx.save_for_backward(inputs[0], indices)
    ctx.options = {name: keyword_only_inputs[name] for name in ("routed_scaling_factor", "norm_topk_prob")}


def _route_backward(ctx: Any, grad_weights: Tensor, *_: None) -> tuple[Tensor, None, None]:
    return reference.route_gradient(grad_weights, *ctx.saved_tensors, **ctx.options), None, None


def _balance_setup(
    ctx: Any,
    inputs: tuple[Tensor, Tensor, Tensor | None],
    keyword_only_inputs: dict[str, Any],
    output: Tensor,
) -> None:
    ctx.save_for_backward(*inputs)
    ctx.options = {name: keyword_only_inputs[name] for name in ("num_sequences", "alpha")}


def _balance_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return reference.sequence_balance_loss_gradient(grad, *ctx.saved_tensors, **ctx.options), None, None


serve_by_reference(
    "route(Tensor logits, Tensor bias, Tensor? valid=None, *, SymInt top_k, SymInt n_groups, "
    "SymInt topk_groups, float routed_scaling_factor, bool norm_topk_prob=True) "
    "-> (Tensor weights, Tensor indices, Tensor load)",
    reference.route,
    _route_fake,
)
serve_by_reference(
    "update_router_bias_(Tensor(a!) bias, Tensor load, float rate) -> ()",
    reference.update_router_bias_,
    _update_router_bias_fake,
)
serve_by_reference(
    "sequence_balance_loss(Tensor logits, Tensor indices, Tensor? valid=None, *, SymInt num_sequences, "
    "float alpha) -> Tensor",
    reference.sequence_balance_loss,
    _balance_fake,
)
torch.library.register_autograd(f"{NAMESPACE}::route", _route_backward, setup_context=_route_setup)
torch.library.register_autograd(
    f"{NAMESPACE}::sequence_balance_loss", _balance_backward, setup_context=_balance_setup
)
