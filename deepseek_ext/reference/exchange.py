"""What the ranks of an expert-parallel group send each other, all of them in one process.

W ranks hold E / W experts each. Lists have an entry for each rank; T tokens and K choices of a rank, R rows
that one receives: one for each (token, rank), whatever the number of the token's experts there. Rows come in
the order of their ranks, and of a rank in the order of its tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import permute


class Arrived(NamedTuple):
    """What one rank gets, and from where."""

    source: Tensor  # [R]: rank
    token: Tensor  # [R]: token of that rank
    indices: Tensor  # int32 [R, K]: which of its own experts the row is for, -1 in place of the others


def exchange_ranks(indices: Tensor, experts_per_rank: int, num_ranks: int) -> Tensor:
    """The ranks that hold a token's experts, each once and ascending: int32 [T, min(W, K)], then -1."""
    ranks = torch.where(indices < 0, num_ranks, indices.div(experts_per_rank, rounding_mode="floor"))
    goes = (ranks[:, :, None] == torch.arange(num_ranks, device=indices.device)).any(1)
    column = torch.arange(num_ranks, device=indices.device).expand(goes.shape)
    ascending = torch.where(goes, column, num_ranks).sort(1).values[:, : min(num_ranks, indices.shape[1])]
    return torch.where(ascending < num_ranks, ascending, -1).int()


def local_indices(indices: Tensor, experts_per_rank: int, rank: int) -> Tensor:
    """Expert numbers as `rank` counts its own; -1 for the experts of other ranks."""
    local = indices - rank * experts_per_rank
    return torch.where((local >= 0) & (local < experts_per_rank) & (indices >= 0), local, -1)


def arrived(indices: list[Tensor], num_experts: int) -> list[Arrived]:
    """What every rank gets, from the choices [T, K] of every rank's tokens."""
    world = len(indices)
    share = num_experts // world
    result = []
    for rank in range(world):
        parts = []
        for source, choices in enumerate(indices):
            local = local_indices(choices, share, rank)
            token = (local >= 0).any(1).nonzero()[:, 0]
            parts.append(Arrived(torch.full_like(token, source), token, local[token]))
        result.append(Arrived(*(torch.cat(part) for part in zip(*parts, strict=True))))
    return result


def dispatch(
    x: list[Tensor], weights: list[Tensor], indices: list[Tensor], num_experts: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Each rank's rows in the order of its experts, with their gate weights; and the ends offs [E / W]."""
    result = []
    for here in arrived(indices, num_experts):
        rows, _, offs = permute.expert_order(here.indices, num_experts // len(x))
        rows = rows[: int(offs[-1])]
        got_x, got_weights = (_rows_of(per_rank, here) for per_rank in (x, weights))
        top_k = here.indices.shape[1]
        result.append(
            (permute.gather_rows(got_x, rows, top_k), got_weights.flatten()[rows.long()], offs),
        )
    return result


def combine(
    rows: list[Tensor], indices: list[Tensor], num_experts: int, ranks_per_node: int | None = None
) -> list[Tensor]:
    """Each rank's [T, H] from the rows in expert order of all ranks.

    A rank sums a token's rows in FP32 in top-k order and rounds; the token's own rank sums what it gets in
    FP32, ranks ascending, and rounds. With ranks_per_node each node's ranks are summed and rounded first,
    then the nodes.
    """
    world, width, dtype = len(rows), rows[0].shape[1], rows[0].dtype
    partial = [torch.zeros(len(choices), world, width, dtype=dtype) for choices in indices]
    for rank, here in enumerate(arrived(indices, num_experts)):
        slots = permute.expert_order(here.indices, num_experts // world)[1]
        summed = permute.combine_rows(rows[rank], slots)
        for source in range(world):
            mine = here.source == source
            partial[source][here.token[mine], rank] = summed[mine]
    if ranks_per_node is not None:
        partial = [
            _ascending(p.unflatten(1, (-1, ranks_per_node)).flatten(0, 1)).view(
                p.shape[0], world // ranks_per_node, width
            )
            for p in partial
        ]
    return [_ascending(p) for p in partial]


def _ascending(partial: Tensor) -> Tensor:
    """Sum over dimension 1, in order, in FP32 (FP64 for FP64)."""
    total = torch.zeros_like(partial[:, 0], dtype=torch.promote_types(partial.dtype, torch.float32))
    for part in partial.unbind(1):
        total = total + part
    return total.to(partial.dtype)


def _rows_of(per_rank: list[Tensor], here: Arrived) -> Tensor:
    parts = [x[here.token[here.source == source]] for source, x in enumerate(per_rank)]
    return torch.cat(parts)


def pack_rows(parts: list[Tensor], rows: Tensor, top_k: int) -> Tensor:
    """Token rows[i] // top_k of every matrix in one row of bytes, each from a multiple of 16 bytes on."""
    token = rows.div(top_k, rounding_mode="floor").long()
    sections = []
    for part in parts:
        taken = part[token].contiguous().view(torch.uint8)
        sections.append(torch.nn.functional.pad(taken, (0, -taken.shape[1] % 16)))
    return torch.cat(sections, 1)
