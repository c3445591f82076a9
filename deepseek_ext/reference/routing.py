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
    """weights [T, K], indices int32 [T, K], load int32 [E] of logits [T, E]; ties go to the lower index.

    The bias takes part in the choice only. A choice that is NaN ranks as -inf, like the experts outside the
    topk_groups groups whose two largest choices have the largest sum.
    """
    scores = torch.sigmoid(logits)
    choice = _nan_is_last(scores + bias)
    experts = logits.shape[1]
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
    load = torch.zeros(experts, dtype=torch.int32, device=logits.device)
    load.index_add_(0, indices.flatten(), counted.flatten().int())
    return weights * routed_scaling_factor, indices.int(), load


def route_gradient(
    grad_weights: Tensor,
    logits: Tensor,
    indices: Tensor,
    *,
    routed_scaling_factor: float,
    norm_topk_prob: bool,
) -> Tensor:
    """Gradient of the logits [T, E], from that of the weights [T, K]; the choice itself has none."""
    chosen = logits.gather(1, indices.long())
    score = torch.sigmoid(chosen)
    grad = grad_weights * routed_scaling_factor
    if norm_topk_prob:
        total = _sum_in_order(score) + TINY
        grad = (grad - (grad * score).sum(1, keepdim=True) / total) / total
    return torch.zeros_like(logits).scatter(1, indices.long(), grad * score * torch.sigmoid(-chosen))


def update_router_bias_(bias: Tensor, load: Tensor, rate: float) -> None:
    """bias [..., E] += rate where the load is below its mean, -= rate where above; compared in int64."""
    load = load.long()
    below = torch.sign(load.sum(-1, keepdim=True) - load * load.shape[-1])
    bias.add_(below.to(bias.dtype), alpha=rate)


def sequence_balance_loss(
    logits: Tensor, indices: Tensor, valid: Tensor | None = None, *, num_sequences: int, alpha: float
) -> Tensor:
    """Mean over sequences of alpha * sum_e f_e P_e (equations 17 to 20), a scalar."""
    share, f = _share_and_frequency(torch.sigmoid(logits), indices, num_sequences, valid)
    return alpha / num_sequences * (f * share).sum()


def sequence_balance_loss_gradient(
    grad: Tensor,
    logits: Tensor,
    indices: Tensor,
    valid: Tensor | None = None,
    *,
    num_sequences: int,
    alpha: float,
) -> Tensor:
    """Gradient of the logits [N, E]; the counts have none."""
    share, f = _share_and_frequency(torch.sigmoid(logits), indices, num_sequences, valid)
    f = f * (grad * alpha / num_sequences)
    grad_logits = (share * (f - (f * share).sum(2, keepdim=True))).view_as(logits) * torch.sigmoid(-logits)
    return grad_logits if valid is None else torch.where(valid[:, None], grad_logits, 0)


def _share_and_frequency(
    score: Tensor, indices: Tensor, num_sequences: int, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Each token's shares s_te / sum_e s_te [B, T, E] (zero for padding), and f_e / T [B, 1, E].

    T counts a sequence's valid tokens; f_e = E / (K T) * (how many of them chose e).
    """
    experts, top_k = score.shape[1], indices.shape[1]
    chosen = torch.zeros_like(score).scatter(1, indices.long(), 1)
    share = score / score.sum(1, keepdim=True)
    present = score.new_ones(score.shape[0], 1) if valid is None else valid[:, None].to(score.dtype)
    if valid is not None:
        chosen, share = chosen * present, torch.where(valid[:, None], share, 0)
    share, chosen, present = (t.view(num_sequences, -1, t.shape[1]) for t in (share, chosen, present))
    length = present.sum(1, keepdim=True).clamp(min=1)
    return share, chosen.sum(1, keepdim=True) * experts / (top_k * length * length)


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
