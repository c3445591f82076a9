"""Several processes: experts spread over ranks."""

from ..ops.exchange import (
    ExpertGroup,
    ExpertRows,
    InFlight,
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
    "ExpertGroup",
    "ExpertRows",
    "InFlight",
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
