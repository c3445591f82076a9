"""Expert parallelism: the routed experts of a model spread over the ranks of a group."""

from __future__ import annotations

import torch
from torch import nn

from ..nn.moe import Experts
from ..ops._checks import require
from ..ops.exchange import ExpertGroup


@torch.no_grad()
def shard_experts(model: nn.Module, group: ExpertGroup) -> None:
    """Leaves to each rank of `group` its share of the routed experts of every layer, in place.

    Rank r keeps experts [r * E/W, (r+1) * E/W) of each `Experts` module as its parameters, under the same
    names; forward and backward passes then exchange rows with the other ranks, so all ranks must run the
    same. Call it before optimizers and FSDP2 see the parameters; meta tensors stay so. A rank's gradients of
    its experts sum over the tokens of all ranks of the group, and all other gradients over its own tokens.
    Raises ValueError if the group's size does not divide the number of experts.
    """
    for name, module in model.named_modules():
        if not isinstance(module, Experts):
            continue
        require(
            module.group is None,
            f"shard_experts: {name} is sharded already; build the model anew to spread it over another group",
        )
        experts = module.gate_up.shape[0]
        require(
            experts % group.size == 0,
            f"shard_experts: the group's {group.size} ranks must divide the {experts} experts of {name}; "
            "choose another group",
        )
        share = experts // group.size
        for parameter in ("gate_up", "down"):
            whole = getattr(module, parameter)
            mine = whole[group.rank * share : (group.rank + 1) * share].clone()
            setattr(module, parameter, nn.Parameter(mine, requires_grad=whole.requires_grad))
        module.group = group
        module.weights_changed()
