"""adamw_step_ against torch's fused AdamW, which keeps its moments in FP32 only, and against copy bandwidth.

Bytes are those that must move: parameter, gradient and both moments read, all but the gradient written back.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek_ext import ops

OPTIONS = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
MODELS = {
    "small model": [(32, 256, 256), (32, 256, 128), *[(256, 256)] * 8, (4096, 256), *[(256,)] * 8],
    "200 vectors": [(256,)] * 200,
    "beyond the cache": [(8192, 4096)],
}


@pytest.mark.parametrize("shapes", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("moments", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_adamw_step(
    shapes: list[tuple[int, ...]],
    moments: torch.dtype,
    threads: int,
    versus: Any,
) -> None:
    def tensors(dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [torch.randn(shape).square_().to(dtype) for shape in shapes]

    ours = tensors(), tensors(), tensors(moments), tensors(moments)
    theirs = (
        [p.clone() for p in ours[0]],
        ours[1],
        tensors(),
        tensors(),
        [],
        [torch.tensor(3.0)] * len(shapes),
    )
    fused = dict(OPTIONS, amsgrad=False, maximize=False)
    count = sum(p.numel() for p in ours[0])
    moved = count * (4 + 8 + 4 * moments.itemsize)
    versus(
        lambda: ops.adamw_step_(*ours, **OPTIONS, step=3),
        {"torch fused": lambda: torch._fused_adamw_(*theirs, **fused)},
        bytes_moved=moved,
    )
