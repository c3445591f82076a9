"""Which rank holds what: ZeRO-1 by FSDP2, and experts spread over the ranks of their group."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard

from ..model import DeepseekV3
from ..nn.init import initialise
from ..nn.moe import Experts
from ..ops.exchange import ExpertGroup
from .experts import shard_experts
from .gloo import SumOfShares
from .world import World


def shard(model: DeepseekV3, world: World) -> None:
    """Leaves this rank its share of the parameters, in place; parameters may be on the meta device.

    Routed experts go to the ranks of an expert group, E / ep to each, and are sharded by their second
    dimension over the ranks that hold the same ones; all else is sharded over all ranks by its first. Each
    step gathers FP32 parameters once and adds up gradients once, in its last micro-batch (`last_micro_batch`
    says which that is). Gradients are summed, not averaged: the loss is divided by the targets of all ranks.
    Raises ValueError if experts cannot be divided so.
    """
    if world.size == 1:
        return
    assert world.experts is not None
    apart: set[nn.Parameter] = set()
    if world.ep > 1:
        shard_experts(model, ExpertGroup.flat(world.experts.get_group("expert")))
        for experts in _experts(model):
            if world.replicas == 1:
                apart.update(experts.parameters())
                continue
            world.lead(partial(_check_divisible, experts, world.replicas))
            fully_shard(
                experts,
                mesh=world.experts["replica"],
                reshard_after_forward=False,
                shard_placement_fn=lambda _: Shard(1),
            )
    for module in (*model.model.layers, model):
        fully_shard(module, mesh=world.data, reshard_after_forward=False, ignored_params=apart)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other kind
            if world.device.type == "cpu":
                module.set_custom_reduce_scatter(SumOfShares())
    for method in ("loss", "decode"):
        register_fsdp_forward_method(model, method)


def last_micro_batch(model: nn.Module, last: bool) -> None:
    """Says whether the coming backward pass is the last of its step: gradients are summed over ranks then."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        model.set_reshard_after_backward(last)
        model.set_is_last_backward(last)


def shards_written(model: nn.Module) -> None:
    """Says that shards were written by other means than an optimizer: they are gathered again at next use."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(model: nn.Module, world: World, name: str, held: Tensor) -> Tensor:
    """`held`, shaped like this rank's part of parameter `name`, as a part of the whole that all ranks form.

    What a checkpoint stores, so that it can be read by any number of ranks; shares the memory of `held`.
    """
    path, _, own_name = name.rpartition(".")
    module = model.get_submodule(path)
    parameter = getattr(module, own_name)
    if world.ep == 1 or not isinstance(module, Experts):
        if isinstance(parameter, DTensor) and not isinstance(held, DTensor):
            return _as_part(held, parameter.device_mesh, parameter.placements, parameter.shape)
        return held  # a buffer, or whole already
    assert world.experts is not None
    shape = torch.Size([parameter.shape[0] * world.ep, *parameter.shape[1:]])
    held = held.to_local() if isinstance(held, DTensor) else held
    return _as_part(held, world.experts, (Shard(1), Shard(0)), shape)


def materialise(model: DeepseekV3, world: World, *, seed: int) -> None:
    """Gives a model on the meta device, sharded or not, memory on this rank's device and initial values."""
    model.to_empty(device=world.device)
    for buffer in model.buffers():  # router biases and loads
        buffer.zero_()
    initialise(model, seed=seed, std=model.config.initializer_range)


def _as_part(held: Tensor, mesh: Any, placements: Any, shape: torch.Size) -> Tensor:
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(held, mesh, placements, run_check=False, shape=shape, stride=stride)


def _experts(model: nn.Module) -> Iterator[Experts]:
    return (module for module in model.modules() if isinstance(module, Experts))


def _check_divisible(experts: Experts, replicas: int) -> None:
    for name, parameter in experts.named_parameters():
        if parameter.shape[1] % replicas:
            raise ValueError(
                f"an expert's {name} has {parameter.shape[1]} rows, which {replicas} ranks that hold the "
                "same experts cannot share evenly; choose an --ep that leaves a divisor of it"
            )
