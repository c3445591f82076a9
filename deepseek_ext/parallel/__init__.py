"""Several processes: experts spread over ranks."""

from ..ops.exchange import (
    Dispatched,
    ExpertGroup,
    ExpertRows,
    Routing,
    combine,
    combine_finish,
    combine_start,
    create_routing,
    dispatch,
    dispatch_finish,
    dispatch_start,
)
from .experts import shard_experts

__all__ = [
    "Dispatched",
    "ExpertGroup",
    "ExpertRows",
    "Routing",
    "combine",
    "combine_finish",
    "combine_start",
    "create_routing",
    "dispatch",
    "dispatch_finish",
    "dispatch_start",
    "shard_experts",
]
