"""The steps of an exchange as operators, opaque to compilers and without derivative.

A hop takes rows of bytes from the T tokens of this process to D destinations, S rows in all, one for each
(token, destination), and brings answers back. A routing is one hop, or two: across nodes, then inside the
node. What has been through every hop are R rows with K choices each, M of them for experts of this process.

As operators take it, a routing is a list of tensors (`rows`, `slots`, `offs` of the order of experts here,
then `rows`, `slots` and `splits` of each hop) and the groups' names ("" for a hop that stays in the process).

A result in flight is an ordinary tensor that must not be read before the step that finishes it, which every
such operator says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._exchange_rows import packed_bytes, sections
from ._library import NAMESPACE

_ops = torch.ops.deepseek_ext


class Hop(NamedTuple):
    rows: Tensor  # int32 [S]: token*N+n of each row, by destination
    slots: Tensor  # int32 [T, N]: the row of each (token, n-th destination), -1 for none
    splits: Tensor  # int64 [2, D], on the host: rows sent to each destination, and got from each


class Steps(NamedTuple):
    """A routing as the operators see it."""

    rows: Tensor  # int32 [M]: r*K+k of each row in the order of the experts here
    slots: Tensor  # int32 [R, K]: the row of each (r, k), -1 for none
    offs: Tensor  # int32 [E / W]
    hops: list[Hop]
    groups: list[str]

    @classmethod
    def of(cls, routing: Sequence[Tensor], groups: list[str]) -> Steps:
        hops = [Hop(*routing[i : i + 3]) for i in range(3, len(routing), 3)]
        return cls(routing[0], routing[1], routing[2], hops, groups)

    @property
    def first(self) -> int:
        """The first hop that leaves the process."""
        return next(i for i, group in enumerate(self.groups) if group)

    def arriving(self, hop: int) -> int:
        """Rows that are there after a hop."""
        after = self.hops[hop + 1].slots if hop + 1 < len(self.hops) else self.slots
        return after.shape[0]

    @property
    def top_k(self) -> int:
        return self.slots.shape[1]


def _pack(parts: list[Tensor], rows: Tensor | None = None, top_k: int = 1) -> Tensor:
    return _ops.pack_rows.default(parts, rows, top_k)


# --- hops


def _move(rows: Tensor, splits: Tensor, group: str, *, back: bool = False) -> Tensor:
    """Rows to (or back from) their destinations; in flight."""
    if not group:
        return rows
    sent, got = splits.flip(0).tolist() if back else splits.tolist()
    return torch.ops._c10d_functional.all_to_all_single(rows, got, sent, group)


def _wait(rows: Tensor) -> Tensor:
    return torch.ops._c10d_functional.wait_tensor(rows)


def _depart(sent: Tensor, steps: Steps) -> Tensor:
    """Packed rows of the first hop on their way; in flight."""
    for hop, group, after in zip(steps.hops, steps.groups, [*steps.hops[1:], None], strict=True):
        if group:
            return _move(sent, hop.splits, group)
        assert after is not None
        sent = _pack([sent], after.rows, after.slots.shape[1])
    raise AssertionError("no hop leaves the process")


def _arrive(flying: Tensor, steps: Steps) -> Tensor:
    """What `_depart` sent, through the remaining hops: packed rows [R, bytes]."""
    rows = _wait(flying)
    for hop, group in list(zip(steps.hops, steps.groups, strict=True))[steps.first + 1 :]:
        sent = _pack([rows], hop.rows, hop.slots.shape[1])
        rows = _wait(_move(sent, hop.splits, group))
    return rows


def _start(parts: list[Tensor], routing: list[Tensor], groups: list[str]) -> Tensor:
    steps = Steps.of(routing, groups)
    return _depart(_pack(parts, steps.hops[0].rows, steps.hops[0].slots.shape[1]), steps)


def _start_fake(parts: list[Tensor], routing: list[Tensor], groups: list[str]) -> Tensor:
    steps = Steps.of(routing, groups)
    return parts[0].new_empty(steps.arriving(steps.first), packed_bytes(parts), dtype=torch.uint8)


def _rows(
    flying: Tensor, routing: list[Tensor], groups: list[str], columns: int, dtype: torch.dtype, weighted: bool
) -> tuple[Tensor, Tensor]:
    steps = Steps.of(routing, groups)
    rows, _, weights = _ops.unpack_rows.default(
        _arrive(flying, steps), steps.rows, steps.top_k, columns, dtype, weighted
    )
    return rows, weights


def _rows_fake(
    flying: Tensor, routing: list[Tensor], groups: list[str], columns: int, dtype: torch.dtype, weighted: bool
) -> tuple[Tensor, Tensor]:
    count = routing[0].shape[0]
    weights = flying.new_empty(count if weighted else 0, dtype=torch.float32)
    return flying.new_empty(count, columns, dtype=dtype), weights


def _tiles(
    flying: Tensor, routing: list[Tensor], groups: list[str], columns: int, weighted: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    steps = Steps.of(routing, groups)
    packed = _arrive(flying, steps)
    again = packed.new_empty(0, 0) if is_arrival(groups) else packed
    return *unpack_tiles(packed, routing, columns, weighted), again


def is_arrival(groups: list[str]) -> bool:
    """Whether what `exchange_start` has in flight are already the rows that `exchange_tiles` unpacks."""
    return bool(groups[-1]) and not any(groups[:-1])


def unpack_tiles(
    packed: Tensor, routing: Sequence[Tensor], columns: int, weighted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and gate weights in the order of experts, from the rows that arrived."""
    rows, top_k = routing[0], routing[1].shape[1]
    return _ops.unpack_rows.default(packed, rows, top_k, columns, torch.float8_e4m3fn, weighted)


def _tiles_fake(
    flying: Tensor, routing: list[Tensor], groups: list[str], columns: int, weighted: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    steps = Steps.of(routing, groups)
    shape = (0, 0) if is_arrival(groups) else (steps.slots.shape[0], flying.shape[1])
    packed = flying.new_empty(steps.slots.shape[0], flying.shape[1])
    return *unpack_tiles(packed, routing, columns, weighted), flying.new_empty(shape)


def _back(parts: list[Tensor], routing: list[Tensor], groups: list[str]) -> Tensor:
    steps = Steps.of(routing, groups)
    return _move(_pack(parts), steps.hops[-1].splits, groups[-1], back=True)


def _back_fake(parts: list[Tensor], routing: list[Tensor], groups: list[str]) -> Tensor:
    count = Steps.of(routing, groups).hops[-1].rows.shape[0]
    return parts[0].new_empty(count, packed_bytes(parts), dtype=torch.uint8)


def _sum(
    flying: Tensor, routing: list[Tensor], groups: list[str], columns: int, dtype: torch.dtype, weighted: bool
) -> tuple[Tensor, Tensor]:
    steps = Steps.of(routing, groups)
    matrices = (columns, dtype), (steps.top_k if weighted else 0, torch.float32)
    rows = flying
    for hop, group in reversed(list(zip(steps.hops, steps.groups, strict=True))):
        if rows is not flying:
            rows = _move(rows, hop.splits, group, back=True)
        packed = _wait(rows) if group else rows
        x, weights = (_ops.combine_rows.default(m, hop.slots) for m in sections(packed, *matrices))
        rows = _pack([x, weights]) if hop is not steps.hops[0] else rows
    return x, weights


def _sum_fake(
    flying: Tensor, routing: list[Tensor], groups: list[str], columns: int, dtype: torch.dtype, weighted: bool
) -> tuple[Tensor, Tensor]:
    steps = Steps.of(routing, groups)
    tokens = steps.hops[0].slots.shape[0]
    weights = flying.new_empty(tokens, steps.top_k if weighted else 0, dtype=torch.float32)
    return flying.new_empty(tokens, columns, dtype=dtype), weights


# --- making a routing


def rank_in(group: str) -> int:
    """This process's rank in the group that torch.distributed knows by this name."""
    resolve: Any = torch._C._distributed_c10d._resolve_process_group
    return int(resolve(group).rank())


def _routing(indices: Tensor, num_experts: int, groups: list[str], sizes: list[int]) -> list[Tensor]:
    # With each row goes, beside the choices, the number of the rank it came from as far as that is known.
    choices, source = indices, indices.new_zeros(indices.shape[0], 1)
    hops: list[Tensor] = []
    held = num_experts
    direct = sum(map(bool, groups)) == 1
    for group, size in zip(groups, sizes, strict=True):
        hop, count, choices, source = _hop(choices, source, held // size, group, size, tracked=not direct)
        hops += hop
        held = held // size if group else held
    if direct:
        rows, slots, offs = _ops.expert_order.default(choices, held)
        return [rows[:count], slots, offs, *hops]
    # Rows came by way of other ranks: in the order of the ranks they are from, as if they had come directly.
    order, place, _ = _ops.expert_order.default(source, group_sizes(groups, sizes))
    rows, slots, offs = _ops.expert_order.default(choices[order], held)
    rows, top_k = rows[:count], choices.shape[1]
    rows = order[rows.div(top_k, rounding_mode="floor")] * top_k + rows % top_k
    return [rows, slots[place.flatten()], offs, *hops]


def group_sizes(groups: list[str], sizes: list[int]) -> int:
    """Ranks in all."""
    ranks = 1
    for group, size in zip(groups, sizes, strict=True):
        ranks *= size if group else 1
    return ranks


def _hop(
    choices: Tensor, source: Tensor, held: int, group: str, size: int, *, tracked: bool
) -> tuple[list[Tensor], int, Tensor, Tensor]:
    """One hop, the choices that come here by it, and the choices and sources of what arrives.

    tracked: whether sources are wanted; else they are what they were.
    """
    ranks = _ops.exchange_ranks.default(choices, held, size)
    rows, slots, sent = _ops.expert_order.default(ranks, size)
    # Counted by the same kernel: bincount would wait for the largest number on the host.
    *_, wanted = _ops.expert_order.default(choices.div(held, rounding_mode="floor"), size)
    ends = torch.stack([sent, wanted], 1)
    counts = torch.diff(ends, dim=0, prepend=ends.new_zeros(1, 2))
    one_each = torch.ones(2, size, dtype=torch.int64)
    got = _wait(_move(counts, one_each, group))
    splits = torch.stack([counts, got]).cpu().long()  # the one copy to the host
    rows = rows[: int(splits[0, :, 0].sum())]
    token = rows.div(ranks.shape[1], rounding_mode="floor")
    to = ranks.flatten()[rows]
    chosen = choices[token]
    local = chosen - (to * held)[:, None]
    is_there = (local >= 0) & (local < held)  # not of no choice, whose -1 stays negative
    local = torch.where(is_there, local if group else chosen, -1)
    carried = torch.cat([local, source[token]], 1).short()
    row_splits = splits[:, :, 0].contiguous()
    arrived = _wait(_move(carried.view(torch.uint8), row_splits, group)).view(torch.int16).int()
    choices, source = arrived[:, :-1].contiguous(), arrived[:, -1:]
    if group and tracked:
        # from whom each row is
        from_ = torch.repeat_interleave(row_splits[1]).to(source.device, torch.int32)
        source = source * size + from_[:, None]
    return [rows, slots, row_splits], int(splits[1, :, 1].sum()), choices, source.contiguous()


def _routing_fake(indices: Tensor, num_experts: int, groups: list[str], sizes: list[int]) -> list[Tensor]:
    ctx = torch.library.get_ctx()
    tokens: int | torch.SymInt = indices.shape[0]
    top_k = indices.shape[1]
    hops: list[Tensor] = []
    held = num_experts
    for group, size in zip(groups, sizes, strict=True):
        held = held // size if group else held
        sent = ctx.new_dynamic_size()
        slots = indices.new_empty(tokens, min(size, top_k))
        splits = torch.empty(2, size, dtype=torch.int64, device="cpu")
        hops += [indices.new_empty(sent), slots, splits]
        tokens = ctx.new_dynamic_size() if group else sent
    rows = indices.new_empty(ctx.new_dynamic_size())
    return [rows, indices.new_empty(tokens, top_k), indices.new_empty(held), *hops]


_ROUTING = "Tensor[] routing, str[] groups"
for _name, _schema, _kernel, _fake in (
    (
        "exchange_routing",
        "(Tensor indices, SymInt num_experts, str[] groups, int[] sizes) -> Tensor[]",
        _routing,
        _routing_fake,
    ),
    ("exchange_start", f"(Tensor[] parts, {_ROUTING}) -> Tensor", _start, _start_fake),
    (
        "exchange_rows",
        f"(Tensor flying, {_ROUTING}, SymInt columns, ScalarType dtype, bool weighted) -> (Tensor, Tensor)",
        _rows,
        _rows_fake,
    ),
    (
        "exchange_tiles",
        f"(Tensor flying, {_ROUTING}, SymInt columns, bool weighted) -> (Tensor, Tensor, Tensor, Tensor)",
        _tiles,
        _tiles_fake,
    ),
    ("exchange_back", f"(Tensor[] parts, {_ROUTING}) -> Tensor", _back, _back_fake),
    (
        "exchange_sum",
        f"(Tensor flying, {_ROUTING}, SymInt columns, ScalarType dtype, bool weighted) -> (Tensor, Tensor)",
        _sum,
        _sum_fake,
    ),
):
    torch.library.define(f"{NAMESPACE}::{_name}", _schema)
    torch.library.impl(f"{NAMESPACE}::{_name}", "CompositeExplicitAutograd", _kernel)
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake)
