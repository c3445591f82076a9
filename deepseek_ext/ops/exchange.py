"""Rows to the ranks that hold their experts and back, over any torch.distributed backend.

W ranks hold E / W experts each. Of the T tokens of a rank each goes once to every rank that holds some of its
K experts, whatever their number there; R rows arrive, M of (row, expert) in the order of the experts here. A
rank reduces what its experts make of a row in FP32 and returns one row, and the token's rank adds the ranks
in ascending order in FP32 (DeepSeek-V3, sections 2.1.2 and 3.2.2). So the same routing always gives the same
bits, and no token is dropped.

Who goes where is found out once, by `create_routing`, and serves both directions forward and backward. All
ranks of a group must make the same calls in the same order, with no tokens too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ._checks import require, require_float32, require_int32, require_weight_dtype, shape_of
from ._exchange import Steps, group_sizes, rank_in
from ._exchange_rows import row_bytes, tile_bytes
from ._kinds import explained
from ._library import NAMESPACE
from .derivatives import first_order_only

_ops = torch.ops.deepseek_ext
_LARGEST = 2**15 - 1  # numbers of experts and ranks travel in 16 bits


@dataclass(frozen=True)
class ExpertGroup:
    """The ranks that share the experts of every layer; rank r holds experts [r * E/W, (r+1) * E/W)."""

    names: tuple[str, ...]
    """The group of each hop, as torch.distributed names it; "" for a hop that stays in the process."""
    sizes: tuple[int, ...]
    """Destinations of each hop: ranks, or the nodes whose ranks a hop inside the process tells apart."""

    @classmethod
    def flat(
        cls, group: dist.ProcessGroup, *, order: Literal["rank", "node"] = "rank", ranks_per_node: int = 1
    ) -> ExpertGroup:
        """One exchange between all ranks of `group`.

        order: "rank" adds what a token's ranks return in one sum; "node" adds and rounds it for each run of
        `ranks_per_node` ranks first, which gives the bits of `two_level`.
        """
        name, size = str(group.group_name), group.size()
        require(order in ("rank", "node"), f'ExpertGroup: order must be "rank" or "node", got {order!r}')
        if order == "rank":
            return cls((name,), (size,))
        require(
            ranks_per_node >= 1 and size % ranks_per_node == 0,
            f"ExpertGroup: ranks_per_node must divide the group's {size} ranks, got {ranks_per_node}",
        )
        return cls(("", name), (size // ranks_per_node, size))

    @classmethod
    def two_level(cls, across: dist.ProcessGroup, inside: dist.ProcessGroup) -> ExpertGroup:
        """First between nodes, each token at most once to a node, then between the ranks of a node.

        across: the ranks with this rank's place in every node, in order of nodes; inside: those of its node.
        """
        return cls((str(across.group_name), str(inside.group_name)), (across.size(), inside.size()))

    @property
    def size(self) -> int:
        """Ranks in all: W."""
        return group_sizes(list(self.names), list(self.sizes))

    @property
    def rank(self) -> int:
        """This process's place among them."""
        rank = 0
        for name, size in zip(self.names, self.sizes, strict=True):
            if name:
                rank = rank * size + rank_in(name)
        return rank


@dataclass(frozen=True)
class Routing:
    """Who goes where, for one batch of tokens; what no call changes."""

    tensors: tuple[Tensor, ...]
    """As the operators take them: see deepseek_ext/ops/_exchange.py."""
    groups: tuple[str, ...]

    @property
    def steps(self) -> Steps:
        return Steps.of(self.tensors, list(self.groups))

    @property
    def rows(self) -> Tensor:
        """int32 [M]: the arrived row times K plus k of each row in the order of the experts here."""
        return self.tensors[0]

    @property
    def slots(self) -> Tensor:
        """int32 [R, K]: where each arrived row's k-th choice lies in that order; -1: not here."""
        return self.tensors[1]

    @property
    def offs(self) -> Tensor:
        """int32 [E / W]: the ends of the rows of each expert here."""
        return self.tensors[2]

    @property
    def tokens(self) -> int:
        """T: the tokens of this rank."""
        return self.steps.hops[0].slots.shape[0]


@dataclass(eq=False)
class InFlight:
    """Rows on their way to their experts, or back to their tokens."""

    edge: Tensor
    """Carries the gradient back; never holds numbers."""
    flying: Tensor
    """What arrives; not to be read before it is finished."""
    routing: Routing
    columns: int
    dtype: torch.dtype
    """Of the tokens, as of what comes back to them."""
    quantised: bool
    finished: bool = False

    def finish(self, op: str) -> tuple[Tensor, Tensor, list[Tensor], list[str]]:
        """What the operator that finishes it takes; once, since two would add up gradients in flight."""
        require(
            not self.finished,
            f"{op}: what was started must be finished once, got it a second time; start another",
        )
        self.finished = True
        return self.edge, self.flying, *_lists(self.routing)


class ExpertRows(NamedTuple):
    rows: Tensor  # [M, H] in the order of the experts here
    weights: Tensor  # float32 [M]: their gate weights
    offs: Tensor  # int32 [E / W]


@explained
def create_routing(indices: Tensor, num_experts: int, group: ExpertGroup | dist.ProcessGroup) -> Routing:
    """Finds out which rows go to which rank and which come here, for `dispatch`, `combine` and backward.

    indices: int32 [T, K], the experts chosen of all `num_experts`, -1 for none; T may differ from rank to
    rank. Sends 2 (K + 1) bytes for each row that will go, and waits for one copy of a few numbers to the host
    (for two hops, two). Raises ValueError for arguments that do not fit, and on the CPU for an index outside
    [-1, num_experts).
    """
    op = "create_routing"
    if isinstance(group, dist.ProcessGroup):
        group = ExpertGroup.flat(group)
    require_int32(op, "indices", indices)
    if indices.dim() != 2 or indices.shape[1] < 1:
        raise ValueError(
            f"{op}: indices must be [T, K] with K >= 1, got shape {shape_of(indices)}; "
            "pass the indices of route"
        )
    world = group.size
    if not 0 < num_experts <= _LARGEST or num_experts % world:
        raise ValueError(
            f"{op}: num_experts must be a multiple of the group's {world} ranks, up to {_LARGEST}, "
            f"got {num_experts}; choose a group whose size divides it"
        )
    names, sizes = list(group.names), list(group.sizes)
    return Routing(tuple(_ops.exchange_routing.default(indices, num_experts, names, sizes)), group.names)


@explained
def dispatch(x: Tensor, weights: Tensor, routing: Routing) -> ExpertRows:
    """Sends tokens to the ranks of their experts: their rows in the order of the experts here.

    x: bfloat16 or float32 [T, H]; weights: float32 [T, K], the tokens' gate weights; routing: of the same
    tokens. Returns rows [M, H] of x's dtype, their gate weights float32 [M], and offs int32 [E / W], all for
    the experts of this rank. Differentiable in x and weights, once: gradients come back as one row for each
    (token, rank), summed there in FP32 in top-k order. Raises ValueError for arguments that do not fit.
    """
    return dispatch_finish(dispatch_start(x, weights, routing))


def dispatch_start(x: Tensor, weights: Tensor, routing: Routing, *, quantise: bool = False) -> InFlight:
    """Starts `dispatch` and returns while rows are under way; `dispatch_finish` ends it, once.

    quantise: what is sent are the E4M3 tiles of x (scales powers of two), for `moe_ffn_experts`. In the
    backward, the gradient's way home is started by the backward of what finished, and waited for by that of
    this; what is computed in between, in the reverse order of forward, overlaps it.
    """
    _check_tokens("dispatch", x, weights, routing)
    edge, flying = _ops.dispatch_start.default(x, weights, *_lists(routing), quantise)
    return InFlight(edge, flying, routing, x.shape[1], x.dtype, quantise)


def dispatch_finish(sent: InFlight) -> ExpertRows:
    """Waits for what `dispatch_start` sent, not quantised, and puts it in the order of the experts here.

    Raises ValueError if that was finished before.
    """
    rows, weights = _ops.dispatch_finish.default(*sent.finish("dispatch_finish"), sent.columns, sent.dtype)
    return ExpertRows(rows, weights, sent.routing.offs)


@explained
def combine(rows: Tensor, routing: Routing) -> Tensor:
    """Brings back to each token the sum of its experts' rows: rows [M, H] -> [T, H], in rows' dtype.

    rows: bfloat16 or float32, in the order of `dispatch`; routing: the one they were dispatched with. A rank
    sums a token's rows in FP32 in top-k order and rounds, the token's rank sums what comes back in FP32,
    ranks ascending, and rounds. Differentiable in rows, once: the gradient is dispatched. Raises ValueError
    for arguments that do not fit.
    """
    return combine_finish(combine_start(rows, routing))


def combine_start(rows: Tensor, routing: Routing) -> InFlight:
    """Starts `combine` and returns while rows are under way; `combine_finish` ends it, once.

    In the backward it is the other way round: that of `combine_finish` starts the gradient's dispatch, and
    that of this waits for it.
    """
    op = "combine"
    require_weight_dtype(op, "rows", rows)
    if rows.dim() != 2 or rows.shape[0] != routing.rows.shape[0]:
        raise ValueError(
            f"{op}: rows must be [M, H] with M = {routing.rows.shape[0]}, got shape {shape_of(rows)}; "
            "pass what was made of the rows that dispatch returned with this routing"
        )
    edge, flying = _ops.combine_start.default(rows, *_lists(routing))
    return InFlight(edge, flying, routing, rows.shape[1], rows.dtype, False)


def combine_finish(back: InFlight) -> Tensor:
    """Waits for what `combine_start` or `moe_ffn_experts` sent back, and adds it up: [T, H].

    Raises ValueError if that was finished before.
    """
    return _ops.combine_finish.default(
        *back.finish("combine_finish"), back.columns, back.dtype, back.quantised
    )


def _lists(routing: Routing) -> tuple[list[Tensor], list[str]]:
    return list(routing.tensors), list(routing.groups)


def _check_tokens(op: str, x: Tensor, weights: Tensor, routing: Routing) -> None:
    require_weight_dtype(op, "x", x)
    if x.dim() != 2 or x.shape[0] != routing.tokens:
        raise ValueError(
            f"{op}: x must be [T, H] with the T = {routing.tokens} of routing, got shape {shape_of(x)}; "
            "make the routing from the indices of these tokens"
        )
    require_float32(op, "weights", weights, "pass the weights of route")
    wanted = [routing.tokens, routing.slots.shape[1]]
    if list(weights.shape) != wanted:
        raise ValueError(
            f"{op}: weights must be [T, K] = {wanted}, got {shape_of(weights)}; "
            "pass the weights that came with the indices"
        )


# Gradients. They cross the graph's edge from finish to start in flight, as tensors [rows, bytes / 4] of FP32
# of which nothing but shape and address is used. Of dispatch one packed row comes home for each that was
# sent: the gradient of the row, in x's dtype, and those of its K gate weights in FP32. Of combine the
# gradient arrives as tokens do, in E4M3 tiles if they were sent so.


def _dispatch_start(
    x: Tensor, weights: Tensor, routing: list[Tensor], groups: list[str], quantise: bool
) -> tuple[Tensor, Tensor]:
    parts = [*_ops.quantize_tiles.default(x, power_of_2=True), weights] if quantise else [x, weights]
    edge = _edge(
        x, Steps.of(routing, groups).hops[-1].rows.shape[0], row_bytes(x.shape[1], x.dtype, weights.shape[1])
    )
    return edge, _ops.exchange_start.default(parts, routing, groups)


def _edge(like: Tensor, rows: int, width: int) -> Tensor:
    """Stands for as many rows of `width` bytes."""
    return like.new_empty_strided((rows, width // 4), (0, 0), dtype=torch.float32)


def _dispatch_start_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, _, routing, groups, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*routing)
    ctx.groups, ctx.columns, ctx.dtype = groups, x.shape[1], x.dtype


@first_order_only("dispatch")
def _dispatch_start_backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    routing = list(ctx.saved_tensors)
    nothing = [None] * len(routing)
    if grad is None:
        return None, None, nothing, None, None
    grads = _ops.exchange_sum.default(
        grad.view(torch.uint8), routing, ctx.groups, ctx.columns, ctx.dtype, True
    )
    return *grads, nothing, None, None


def _dispatch_finish(
    edge: Tensor, flying: Tensor, routing: list[Tensor], groups: list[str], columns: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return _ops.exchange_rows.default(flying, routing, groups, columns, dtype, True)


def _dispatch_finish_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[2])
    ctx.groups = inputs[3]


@first_order_only("dispatch")
def _dispatch_finish_backward(ctx: Any, grad: Tensor, grad_weights: Tensor) -> tuple[Any, ...]:
    routing = list(ctx.saved_tensors)
    edge = grad_edge(grad, grad_weights, routing, ctx.groups)
    return edge, None, [None] * len(routing), None, None, None


def grad_edge(grad_rows: Tensor, grad_weights: Tensor, routing: list[Tensor], groups: list[str]) -> Tensor:
    """Starts the gradients of rows [M, H] and of their gate weights [M] on their way home; in flight."""
    slots = routing[1]
    by_slot = _ops.gather_rows.default(grad_weights.reshape(-1, 1), slots.flatten(), 1).view(slots.shape)
    return _homeward(grad_rows, [by_slot], routing, groups).view(torch.float32)


def _homeward(rows: Tensor, beside: list[Tensor], routing: list[Tensor], groups: list[str]) -> Tensor:
    """The sum of each arrived row's experts, and beside it what else [R, *] it has; in flight."""
    summed = _ops.combine_rows.default(rows, routing[1])
    return _ops.exchange_back.default([summed, *beside], routing, groups)


def start_back(
    rows: Tensor, routing: list[Tensor], groups: list[str], *, quantised: bool
) -> tuple[Tensor, Tensor]:
    """Starts rows [M, H] that experts made on their way home: the gradient's edge; and what is in flight."""
    steps, columns = Steps.of(routing, groups), rows.shape[1]
    width = tile_bytes(columns) if quantised else row_bytes(columns, rows.dtype, 0)
    return _edge(rows, steps.arriving(steps.first), width), _homeward(rows, [], routing, groups)


def _combine_start(rows: Tensor, routing: list[Tensor], groups: list[str]) -> tuple[Tensor, Tensor]:
    return start_back(rows, routing, groups, quantised=False)


def _combine_start_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    rows, routing, groups = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*routing)
    ctx.groups, ctx.columns, ctx.dtype = groups, rows.shape[1], rows.dtype


@first_order_only("combine")
def _combine_start_backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    routing = list(ctx.saved_tensors)
    nothing = [None] * len(routing)
    if grad is None:
        return None, nothing, None
    flying = grad.view(torch.uint8)
    rows, _ = _ops.exchange_rows.default(flying, routing, ctx.groups, ctx.columns, ctx.dtype, False)
    return rows, nothing, None


def _combine_finish(
    edge: Tensor,
    flying: Tensor,
    routing: list[Tensor],
    groups: list[str],
    columns: int,
    dtype: torch.dtype,
    quantised: bool,
) -> Tensor:
    return _ops.exchange_sum.default(flying, routing, groups, columns, dtype, False)[0]


def _combine_finish_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, routing, groups, _, _, quantised = inputs
    ctx.save_for_backward(*routing)
    ctx.groups, ctx.quantised = groups, quantised


@first_order_only("combine")
def _combine_finish_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    routing = list(ctx.saved_tensors)
    parts = [*_ops.quantize_tiles.default(grad, power_of_2=True)] if ctx.quantised else [grad]
    edge = _ops.exchange_start.default(parts, routing, ctx.groups).view(torch.float32)
    return edge, None, [None] * len(routing), None, None, None, None


_LISTS = "Tensor[] routing, str[] groups"
for _name, _schema, _kernel, _backward, _setup in (
    (
        "dispatch_start",
        f"(Tensor x, Tensor weights, {_LISTS}, bool quantise) -> (Tensor edge, Tensor flying)",
        _dispatch_start,
        _dispatch_start_backward,
        _dispatch_start_setup,
    ),
    (
        "dispatch_finish",
        f"(Tensor edge, Tensor flying, {_LISTS}, SymInt columns, ScalarType dtype) -> "
        "(Tensor rows, Tensor weights)",
        _dispatch_finish,
        _dispatch_finish_backward,
        _dispatch_finish_setup,
    ),
    (
        "combine_start",
        f"(Tensor rows, {_LISTS}) -> (Tensor edge, Tensor flying)",
        _combine_start,
        _combine_start_backward,
        _combine_start_setup,
    ),
    (
        "combine_finish",
        f"(Tensor edge, Tensor flying, {_LISTS}, SymInt columns, ScalarType dtype, bool quantised) -> Tensor",
        _combine_finish,
        _combine_finish_backward,
        _combine_finish_setup,
    ),
):
    torch.library.define(f"{NAMESPACE}::{_name}", _schema)
    torch.library.impl(f"{NAMESPACE}::{_name}", "CompositeExplicitAutograd", _kernel)
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _kernel)  # what it calls has fakes of its own
    torch.library.register_autograd(f"{NAMESPACE}::{_name}", _backward, setup_context=_setup)
