"""What a training step loads: memory that every process of a run holds, and seconds before its first step."""

from __future__ import annotations

import subprocess
import sys

import pytest

STEP = """
import sys
import torch
from deepseek_ext import DeepseekV3, ModelConfig
from deepseek_ext.train import TrainConfig, build_optimizer

model = DeepseekV3(TrainConfig(depth=1, vocab_size=300).model_config())
optimizer = build_optimizer(model, lr=1e-3)
model.loss(torch.zeros(1, 8, dtype=torch.int64), torch.zeros(1, 8, dtype=torch.int64)).total.backward()
optimizer.step()
optimizer.zero_grad()
print(*sys.modules)
"""


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module",
    ["torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.tensor", "sympy", "tokenizers"],
)
def test_a_step_does_not_load(module: str, loaded: set[str]) -> None:
    assert "deepseek_ext.train.optimizer" in loaded
    assert module not in loaded


def test_names_loaded_late_are_there() -> None:
    from deepseek_ext import train
    from deepseek_ext.train import session, trainer

    assert train.run is session.run
    assert train.load_run is session.load_run
    assert train.Trainer is trainer.Trainer
    with pytest.raises(AttributeError, match="no attribute 'runs'"):
        train.runs  # noqa: B018
