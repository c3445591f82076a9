"""The exchange inside torch.compile(fullgraph=True), and opcheck of its operators."""

from __future__ import annotations

import pytest
import torch
from exchange_inputs import MODES, expert_group
from ranks import WORLD, Place, Ranks
from torch import Tensor
from torch.library import opcheck

from deepseek_ext import ops, parallel

EXPERTS, TOP_K, HIDDEN, WIDTH = 4, 2, 200, 136
OPS = torch.ops.deepseek_ext


def inputs(place: Place, tokens: int, held: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(tokens + place.rank)
    x = torch.randn(tokens, HIDDEN, generator=rng).bfloat16()
    indices = torch.rand(tokens, EXPERTS, generator=rng).argsort(1)[:, :TOP_K].int()
    gate_up = torch.randn(held, 2 * WIDTH, HIDDEN, generator=rng) / 16
    down = torch.randn(held, HIDDEN, WIDTH, generator=rng) / 11
    return [x, torch.rand(tokens, TOP_K, generator=rng), gate_up, down, indices]


def one_graph(place: Place, mode: str) -> int:
    """Forward and backward in one graph for any number of tokens, with eager's bits."""
    group = expert_group(place, mode)

    def layer(x: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, indices: Tensor) -> Tensor:
        routing = parallel.create_routing(indices, EXPERTS, group)
        y = ops.moe_ffn(x, weights, indices, gate_up, down, exchange=routing)
        rows, row_weights, _ = parallel.dispatch(x, weights, routing)
        return y + parallel.combine(rows * row_weights[:, None].to(rows.dtype), routing)

    def run(call: object, tokens: int, *, dynamic: bool) -> list[Tensor]:
        given = inputs(place, tokens, EXPERTS // WORLD)
        for t in given[:4]:
            t.requires_grad_()
        if dynamic:
            for i in (0, 1, 4):
                torch._dynamo.mark_dynamic(given[i], 0)
        y = call(*given)  # type: ignore[operator]
        return [y, *torch.autograd.grad(y, given[:4], torch.ones_like(y))]

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for tokens in (40, 55 + place.rank):
        for got, wanted in zip(
            run(compiled, tokens, dynamic=True), run(layer, tokens, dynamic=False), strict=True
        ):
            assert torch.equal(got, wanted)
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.parametrize("mode", MODES)
def test_one_graph_across_ranks(ranks: Ranks, mode: str) -> None:
    assert ranks.run(one_graph, mode) == [1] * WORLD


def checks(place: Place) -> None:
    """In a group of one. What is in flight cannot be compared, so those operators run without the comparison
    of compiled results, which the test above makes."""
    if place.rank:
        return
    name = str(place.groups[1].group_name)
    x, weights, gate_up, down, indices = inputs(place, 30, EXPERTS)
    routing = parallel.create_routing(indices, EXPERTS, place.groups[1])
    lists = list(routing.tensors), list(routing.groups)
    parts = [x, weights]
    flying = OPS.exchange_start(parts, *lists)
    torch.ops._c10d_functional.wait_tensor(flying)
    width = HIDDEN, torch.bfloat16
    opcheck(OPS.exchange_ranks.default, (indices, 2, 2))
    opcheck(OPS.pack_rows.default, (parts, routing.rows, TOP_K))
    opcheck(OPS.pack_rows.default, (parts, None, 1))
    opcheck(OPS.unpack_rows.default, (OPS.pack_rows(parts, None, 1), routing.rows, TOP_K, *width, True))
    opcheck(OPS.exchange_routing.default, (indices, EXPERTS, [name], [1]))
    opcheck(OPS.exchange_rows.default, (flying, *lists, *width, True))
    opcheck(OPS.exchange_sum.default, (flying, *lists, *width, True))
    rows = torch.randn(routing.rows.shape[0], HIDDEN, requires_grad=True)
    untimed = ("test_schema", "test_faketensor", "test_autograd_registration")
    opcheck(OPS.exchange_start.default, (parts, *lists), test_utils=untimed)
    opcheck(OPS.exchange_back.default, (parts, *lists), test_utils=untimed)
    x, weights = x.requires_grad_(), weights.requires_grad_()
    opcheck(OPS.dispatch_start.default, (x, weights, *lists, False), test_utils=untimed)
    opcheck(OPS.dispatch_start.default, (x, weights, *lists, True), test_utils=untimed)
    sent = parallel.dispatch_start(x, weights, routing)
    opcheck(OPS.dispatch_finish.default, (sent.edge, sent.flying, *lists, *width), test_utils=untimed)
    opcheck(OPS.combine_start.default, (rows, *lists), test_utils=untimed)
    for quantised in (False, True):
        back = parallel.combine_start(rows, routing)
        given = back.edge, back.flying, *lists, HIDDEN, torch.float32, quantised
        opcheck(OPS.combine_finish.default, given, test_utils=untimed)
    tiles = parallel.dispatch_start(x, weights, routing, quantise=True)
    # test_schema cannot compare float8 inputs.
    opcheck(OPS.exchange_tiles.default, (tiles.flying, *lists, HIDDEN, True))
    codes = *ops.quantize_blocks(gate_up), *ops.quantize_blocks(down)
    arguments = tiles.edge, tiles.flying, gate_up, down, *codes, *lists, *width
    opcheck(OPS.moe_ffn_experts.default, arguments, test_utils=untimed[1:])


def test_opcheck(ranks: Ranks) -> None:
    ranks.run(checks)
