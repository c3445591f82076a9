"""A small model and a batch for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek_ext.config import ModelConfig
from deepseek_ext.model import DeepseekV3


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These models are too small for two threads, which on a busy machine wait for each other instead."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_model() -> Callable[..., DeepseekV3]:
    """Builds the tiny model; routers and their biases are made uneven, so that routing matters."""

    def make(precision: str = "fp32", *, std: float = 0.05, **changes: Any) -> DeepseekV3:
        config = ModelConfig.preset("tiny", **{"initializer_range": std, **changes})
        model = DeepseekV3(config, precision=precision, seed=3)
        source = torch.Generator().manual_seed(4)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.uniform_(-0.05, 0.05, generator=source)
        return model

    return make


@pytest.fixture
def make_batch(rng: torch.Generator) -> Callable[..., tuple[Tensor, Tensor]]:
    """Draws (tokens, targets), int64 [B, T]."""

    def make(batch: int, length: int, vocabulary: int = 512) -> tuple[Tensor, Tensor]:
        text = torch.randint(vocabulary, (batch, length + 1), generator=rng)
        return text[:, :-1].contiguous(), text[:, 1:].contiguous()

    return make
