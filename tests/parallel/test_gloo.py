"""Sums of gradients over gloo: each rank its share, added in the order of ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from ranks import WORLD, Place, Ranks

from deepseek_ext.parallel.gloo import SumOfShares


def adds_up(place: Place) -> int:
    reduce_scatter = SumOfShares()
    for size in (2, WORLD):
        group = place.groups[size]
        first = place.rank // size * size
        values = [torch.randn(size * 1000, generator=torch.Generator().manual_seed(r)) for r in range(WORLD)]
        mine = reduce_scatter.allocate((1000,), dtype=torch.float32, device=torch.device("cpu"))
        given = values[place.rank].clone()
        reduce_scatter(mine, given, group, dist.ReduceOp.SUM)
        shares = [values[r].chunk(size)[place.rank - first] for r in range(first, first + size)]
        wanted = shares[0].clone()
        for share in shares[1:]:
            wanted += share
        assert torch.equal(mine, wanted)
        assert torch.equal(given, values[place.rank])
    return size


def test_each_rank_gets_the_sum_of_its_share(ranks: Ranks) -> None:
    assert ranks.run(adds_up) == [WORLD] * WORLD
