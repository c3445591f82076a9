"""adamw_step_ with BF16 moments against torch's AdamW, which keeps them in FP32.

Served by plain PyTorch so far, in pieces that stay in the cache.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deepseek_ext import ops

SHAPES = [(32, 256, 256), (32, 256, 128), *[(256, 256)] * 8, (4096, 256), *[(256,)] * 8]
OPTIONS = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}


@pytest.mark.parametrize("moments", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_adamw_step(moments: torch.dtype, threads: int, versus: Any) -> None:
    params = [torch.randn(shape) for shape in SHAPES]
    grads = [torch.randn(shape) for shape in SHAPES]
    exp_avgs, exp_avg_sqs = ([torch.zeros(shape, dtype=moments) for shape in SHAPES] for _ in range(2))
    copies = [p.clone().requires_grad_() for p in params]
    for copy, grad in zip(copies, grads, strict=True):
        copy.grad = grad
    fused = torch.optim.AdamW(copies, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    foreach = torch.optim.AdamW(copies, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, foreach=True)
    count = sum(p.numel() for p in params)
    versus(
        lambda: ops.adamw_step_(params, grads, exp_avgs, exp_avg_sqs, **OPTIONS, step=3),
        {"torch fused": fused.step, "torch foreach": foreach.step},
        bytes_moved=count * (4 + 8 + 4 * moments.itemsize),
    )
