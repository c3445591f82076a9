"""What a step of the trainer sends beside tokens: over four ranks, of which pairs share the experts."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import torch
from ranks import WORLD, Place, Ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.utils._python_dispatch import TorchDispatchMode

from deepseek_ext.parallel.world import World
from deepseek_ext.train import TrainConfig
from deepseek_ext.train.trainer import Trainer

EP = 2
SETTINGS: dict[str, Any] = {
    **{"depth": 2, "hidden_size": 64, "heads": 2, "experts": 8, "expert_size": 64, "vocab_size": 384},
    **{"seq_len": 16, "sequences": 2 * WORLD, "tokens": 1024, "precision": "fp32", "ep": EP},
    "bias_update_speed": 0.01,
}


class Collectives(TorchDispatchMode):
    """Counts torch.distributed's by name, and how often tokens are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "deepseek_ext"):
            self.count[func.name().partition("::")[2]] += 1
        return func(*args, **(kwargs or {}))


class Text:
    """Batches of random tokens, the same on every rank."""

    def batch(self, sequences: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.randint(SETTINGS["vocab_size"], (sequences, SETTINGS["seq_len"] + 1))
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def steps(place: Place) -> list[list[float]]:
    world = World(
        rank=place.rank,
        size=WORLD,
        ep=EP,
        data=init_device_mesh("cpu", (WORLD,), mesh_dim_names=("data",)),
        experts=init_device_mesh("cpu", (WORLD // EP, EP), mesh_dim_names=("replica", "expert")),
    )
    counts = []
    for micro_sequences in (2, 1):
        config = TrainConfig(**SETTINGS, micro_sequences=micro_sequences).derived()
        data: Any = SimpleNamespace(batches=Text(), document_starts=lambda _: None, bytes_per_token=1.0)
        trainer = Trainer(config, data, world)
        trainer.train_step()
        with Collectives() as seen:
            trainer.train_step()
        counts.append(seen.count)
        sharded = sum(isinstance(module, FSDPModule) for module in trainer.model.modules())
        assert sharded > 4, "layers, the experts of two of them, and the rest"
        assert seen.count["_allgather_base_"] == sharded, seen.count
        assert seen.count["alltoall_base_"] == sharded, seen.count  # SumOfShares
        assert seen.count["allreduce_"] == 1, seen.count
    whole, halves = (count["dispatch_start"] for count in counts)
    assert whole > 0
    assert halves == 2 * whole, "only tokens travel in each micro-batch"
    return [router.e_score_correction_bias.tolist() for router in trainer.model._routers()]


def test_weights_and_gradients_travel_once_a_step(ranks: Ranks) -> None:
    """However many micro-batches; one sum for loss, norm and all loads; so biases are the same everywhere."""
    first, *others = ranks.run(steps)
    assert all(biases == first for biases in others)
    assert any(bias != 0 for router in first for bias in router)
