"""The router: node-limited top-k of sigmoid scores, balanced by a bias (DeepSeek-V3, section 2.1.2).

T tokens, E experts in n_groups groups of equal size, K = top_k choices a token.
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-20  # keeps the division finite where all chosen scores are zero


def route(
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
    """weights [T, K], indices int32 [T, K], load int32 [E] of logits [T, E]; ties go to the lower index."""
    return route_scores(
        torch.sigmoid(logits),
        bias,
        valid,
        top_k=top_k,
        n_groups=n_groups,
        topk_groups=topk_groups,
        routed_scaling_factor=routed_scaling_factor,
        norm_topk_prob=norm_topk_prob,
    )


def route_scores(
    scores: Tensor,
    bias: Tensor,
    valid: Tensor | None = None,
    *,
    top_k: int,
    n_groups: int,
    topk_groups: int,
    routed_scaling_factor: float,
    norm_topk_prob: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """What follows from the scores [T, E], whoever computed the sigmoids.

    The bias takes part in the choice only. A choice that is NaN ranks as -inf, like the experts outside the
    topk_groups groups whose two largest choices have the largest sum.
    """
    choice = _nan_is_last(scores + bias)
    experts = scores.shape[1]
    if topk_groups < n_groups:
        size = experts // n_groups
        grouped = choice.unflatten(1, (n_groups, size))
        group_score = _nan_is_last(grouped.topk(min(2, size), dim=2).values.sum(2))
        dropped = _ranking(group_score)[:, topk_groups:]
        choice = grouped.scatter(1, dropped[:, :, None].expand(-1, -1, size), -torch.inf).flatten(1)
    indices = _ranking(choice)[:, :top_k].contiguous()
    weights = scores.gather(1, indices)
    if norm_topk_prob:
        weights = weights / (_sum_in_order(weights) + TINY)
    counted = torch.ones_like(indices) if valid is None else valid[:, None].expand_as(indices)
    load = torch.zeros(experts, dtype=torch.int32, device=scores.device)
    load.index_add_(0, indices.flatten(), counted.flatten().int())
    return weights * routed_scaling_factor, indices.int(), load


def update_router_bias_(bias: Tensor, load: Tensor, rate: float) -> None:
    """bias [..., E] += rate where the load is below its mean, -= rate where above; compared in int64."""
    load = load.long()
    below = torch.sign(load.sum(-1, keepdim=True) - load * load.shape[-1])
    bias.add_(below.to(bias.dtype), alpha=rate)


def sequence_balance_loss(
    logits: Tensor, indices: Tensor, valid: Tensor | None = None, *, num_sequences: int, alpha: float
) -> Tensor:
    """Mean over sequences of alpha * sum_e f_e P_e (equations 17 to 20), a scalar.

    P_e is the mean over a sequence's T valid tokens of s_e / sum s, f_e is E / (K T) times how often e was
    chosen.
    """
    experts, top_k = logits.shape[1], indices.shape[1]
    scores = torch.sigmoid(logits)
    share = scores / scores.sum(1, keepdim=True)
    chosen = torch.zeros_like(scores).scatter_add(1, indices.long(), scores.new_ones(indices.shape))
    present = scores.new_ones(scores.shape[0], 1)
    if valid is not None:
        present = valid[:, None].to(scores.dtype)
        share, chosen = torch.where(valid[:, None], share, 0), chosen * present
    share, chosen, present = (
        t.unflatten(0, (num_sequences, -1)).sum(1) for t in (share, chosen, present)
    )  # [num_sequences, E], [num_sequences, E], [num_sequences, 1]
    length = present.clamp(min=1)
    f, p = chosen * experts / (top_k * length), share / length
    return alpha / num_sequences * (f * p).sum()


def _ranking(x: Tensor) -> Tensor:
    """Column numbers by falling value, the lower one first among equals (topk promises no order)."""
    return torch.sort(x, dim=1, descending=True, stable=True).indices


def _nan_is_last(x: Tensor) -> Tensor:
    return torch.where(x.isnan(), -torch.inf, x)


def _sum_in_order(x: Tensor) -> Tensor:
    """Row sums [T, 1], added from left to right on every device."""
    total = x[:, :1]
    for k in range(1, x.shape[1]):
        total = total + x[:, k : k + 1]
    return total
