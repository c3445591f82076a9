"""Small models with uneven weights, and checkpoints of them, for the tests of Hugging Face's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from deepseek_ext.config import ModelConfig
from deepseek_ext.model import DeepseekV3

YARN = {
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 40,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
    "type": "yarn",
}


def small_model(rng: torch.Generator, precision: str = "fp32", **changes: Any) -> DeepseekV3:
    """A model of two main layers, one of them MoE, with uneven norms, routers and biases."""
    settings = {"vocab_size": 96, "num_hidden_layers": 2, "moe_intermediate_size": 72, **changes}
    model = DeepseekV3(ModelConfig.preset("tiny", **settings), precision=precision)
    randomise(model, rng)
    return model


@torch.no_grad()
def randomise(model: torch.nn.Module, rng: torch.Generator, bias: float = 0.0) -> None:
    """Weights of a size at which every part matters; router biases in [bias - 0.2, bias + 0.2]."""
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("e_score_correction_bias"):
            value.uniform_(bias - 0.2, bias + 0.2, generator=rng)
        elif name.endswith("mlp.gate.weight"):
            value.normal_(0, 0.2, generator=rng)  # scores must differ, or any routing would pass
        elif value.dim() == 1 and name.endswith("weight"):
            value.uniform_(0.5, 1.5, generator=rng)
        elif value.is_floating_point() and value.dim() > 1:
            value.normal_(0, 0.08, generator=rng)
    if isinstance(model, DeepseekV3):
        model.weights_changed()


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, by its name."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as reader:
            found.update({name: reader.get_tensor(name) for name in reader.keys()})  # noqa: SIM118
    return found


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def change_config(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps({**config_of(folder), **changes}))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}
