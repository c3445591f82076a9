"""Tokens to the ranks of their experts and back between two gloo processes, and the packing of their rows.

The second process mirrors each call of this one; both have one thread. The rival is what a user would write:
one BF16 row for each (token, expert), by torch.distributed's differentiable all_to_all.
"""

from __future__ import annotations

import functools
import multiprocessing
import tempfile
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from memory import keep_freed_memory
from torch import Tensor

from deepseek_ext import ops, parallel

DEVICES = ["cpu"]
EXPERTS, TOP_K, RANKS = 32, 4, 2
# Tokens of a rank x width: of the recipe in two processes, of a wider model, of DeepSeek-V3.
SHAPES = [(1024, 256), (1024, 1024), (1024, 7168)]
GOAL = 0.7
OPS = torch.ops.deepseek_ext

Shape = tuple[int, int]


def tokens(shape: Shape, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """x BF16, gate weights FP32 and an uneven routing."""
    rng = torch.Generator().manual_seed(rank)
    choice = torch.rand(shape[0], EXPERTS, generator=rng) * torch.linspace(0.5, 1, EXPERTS)
    indices = choice.argsort(1, descending=True)[:, :TOP_K].int()
    x = torch.randn(shape, generator=rng).bfloat16()
    return x.requires_grad_(), torch.rand(shape[0], TOP_K, generator=rng), indices


def ours(x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
    routing = parallel.create_routing(indices, EXPERTS, parallel.ExpertGroup.flat(dist.group.WORLD))
    rows, row_weights, _ = parallel.dispatch(x, weights, routing)
    return parallel.combine(rows * row_weights[:, None].to(rows.dtype), routing)


def composition(x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
    """Rows sorted by expert, sent, sorted by expert again; back the same way and added up."""
    from torch.distributed.nn.functional import all_to_all_single

    flat = indices.flatten().long()
    order = flat.argsort(stable=True)
    token = order // TOP_K
    counts = torch.bincount(flat // (EXPERTS // RANKS), minlength=RANKS)
    there = torch.empty_like(counts)
    dist.all_to_all_single(there, counts)
    sent, got = counts.tolist(), there.tolist()
    experts = flat.new_empty(sum(got))
    dist.all_to_all_single(experts, flat[order], got, sent)
    rows = all_to_all_single(x.new_empty(sum(got), x.shape[1]), x.index_select(0, token), got, sent)
    by_expert = experts.argsort(stable=True)
    made = rows.index_select(0, by_expert)  # what the experts read, and here return
    back = made.index_select(0, by_expert.argsort())
    home = all_to_all_single(x.new_empty(len(token), x.shape[1]), back, sent, got)
    home = home * weights.flatten()[order, None].to(x.dtype)
    return torch.zeros_like(x).index_add(0, token, home)


@functools.cache
def calls(shape: Shape, rank: int) -> dict[str, Callable[[], Any]]:
    x, weights, indices = tokens(shape, rank)

    def backward(call: Callable[..., Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(call(x, weights, indices), x, x.detach())

    return {
        "ours": lambda: ours(x.detach(), weights, indices),
        "all_to_all bf16": lambda: composition(x.detach(), weights, indices),
        "ours, gradient": backward(ours),
        "all_to_all bf16, gradient": backward(composition),
    }


def join(store: str, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, RANKS), rank=rank, world_size=RANKS)


def mirror(store: str, pipe: Connection) -> None:
    """The second process."""
    warnings.simplefilter("ignore", FutureWarning)
    keep_freed_memory()
    join(store, 1)
    while (asked := pipe.recv()) is not None:
        shape, call = asked
        calls(shape, 1)[call]()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def together() -> Iterator[Callable[[Shape, str], Callable[[], Any]]]:
    """together(shape, name): that call, made by both processes."""
    threads = torch.get_num_threads()
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        process = context.Process(target=mirror, args=(store, theirs), daemon=True)
        process.start()
        join(store, 0)

        def call(shape: Shape, name: str) -> Callable[[], Any]:
            mine = calls(shape, 0)[name]

            def both() -> Any:
                pipe.send((shape, name))
                return mine()

            return both

        yield call
        pipe.send(None)
        process.join()
        dist.destroy_process_group()
    calls.cache_clear()
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore:.*all_to_all_single.*is deprecated:FutureWarning")
@pytest.mark.parametrize("gradient", ["", ", gradient"], ids=["forward", "forward and backward"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def test_dispatch_and_combine(
    shape: Shape,
    gradient: str,
    together: Callable[[Shape, str], Callable[[], Any]],
    versus: Callable[..., Any],
) -> None:
    """The routing made each time."""
    rival = "all_to_all bf16"
    versus(
        together(shape, f"ours{gradient}"),
        {rival: together(shape, f"{rival}{gradient}")},
        rounds=31,  # two cores, two processes and gloo's threads: single calls vary threefold
    )


@pytest.fixture(params=SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def parts(request: pytest.FixtureRequest) -> tuple[list[Tensor], Tensor]:
    """Tiles, scales and gate weights, and the rows of those that go to one of two ranks or both."""
    x, weights, indices = tokens(request.param, 0)
    ranks = OPS.exchange_ranks(indices, EXPERTS // RANKS, RANKS)
    rows, _, offs = ops.expert_order(ranks, RANKS)
    return [*ops.quantize_tiles(x.detach(), power_of_2=True), weights], rows[: int(offs[-1])]


def test_pack_rows(parts: tuple[list[Tensor], Tensor], threads: int, measure: Callable[..., Any]) -> None:
    matrices, rows = parts
    source = rows.long() // RANKS
    plain = [matrix.contiguous().view(torch.uint8) for matrix in matrices]
    rivals = {"torch": lambda: torch.cat([matrix.index_select(0, source) for matrix in plain], 1)}
    measure(lambda: OPS.pack_rows(matrices, rows, RANKS), rivals, [*matrices, rows], GOAL)


def test_unpack_rows(parts: tuple[list[Tensor], Tensor], threads: int, measure: Callable[..., Any]) -> None:
    """What arrived, in the order of the experts."""
    (codes, scales, weights), _ = parts
    packed = OPS.pack_rows([codes, scales, weights], None, 1)
    rows = torch.randperm(len(codes) * TOP_K, generator=torch.Generator().manual_seed(0))[: 3 * len(codes)]
    hidden, tiles = codes.shape[1], scales.shape[1]
    ends = hidden, hidden + 4 * tiles, hidden + (4 * tiles + 15) // 16 * 16
    token, choice = rows // TOP_K, rows % TOP_K
    numbers = rows.int()

    def composed() -> list[Tensor]:
        gates = packed[:, ends[2] : ends[2] + 4 * TOP_K].view(torch.float32)
        return [
            packed[:, : ends[0]].index_select(0, token),
            packed[:, ends[0] : ends[1]].index_select(0, token),
            gates[token, choice],
        ]

    def unpacked() -> tuple[Tensor, ...]:
        return OPS.unpack_rows(packed, numbers, TOP_K, hidden, torch.float8_e4m3fn, True)

    measure(unpacked, {"torch": composed}, [packed, numbers], GOAL)
