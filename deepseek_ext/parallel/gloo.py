"""What gloo does slowly, made of what it does fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter


class SumOfShares(ReduceScatter):
    """Adds up gradients over ranks and leaves each its share, for FSDP2.

    gloo's own reduce-scatter all-reduces the whole, which takes twice the time for 16 MB between two
    processes, and six times for 1 MB. Here each rank gets all ranks' values of its share and adds them in the
    order of ranks.
    """

    def allocate(
        self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> None:
        assert op == dist.ReduceOp.SUM, "shard() asks for sums"
        assert not async_op
        gathered = torch.empty_like(input_tensor)
        dist.all_to_all_single(gathered, input_tensor, group=group)
        first, second, *others = gathered.chunk(group.size())
        torch.add(first, second, out=output_tensor)
        for other in others:
            output_tensor.add_(other)
