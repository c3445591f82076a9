"""What this machine can do and what a model asks of it: a measured peak, memory, sizes."""

from __future__ import annotations

import ctypes
import platform
import resource
import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn

from ..config import ModelConfig


def threads() -> str:
    """How many threads torch computes with here, in words."""
    count = torch.get_num_threads()
    return f"{count} thread{'s' * (count != 1)}"


def slow_fallbacks(tier: str, host: str, precision: str) -> list[str]:
    """What makes a run on this CPU slower than it could be, or than the precision promises: a sentence each.

    tier: the instruction set that the kernels use; host: the best one of this CPU.
    """
    found = []
    if not tier.startswith(host):
        found.append(f"tier {tier} is in use, this CPU has {host}")
    if host == "generic":
        found.append("this CPU lacks AVX2 and FMA, so the kernels are plain C++")
    if host in ("generic", "avx2") and precision == "bf16":
        found.append("this CPU lacks AVX-512, so BF16 products are computed in FP32")
    return found


def peak_memory() -> int:
    """The most memory this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def keep_freed_memory() -> None:
    """Returns what is free to the system, and lets glibc hand out again what is freed from now on.

    Left alone it returns the tensors of a step to the system, and each page that the next step writes costs a
    fault: 10,000 of them in a step of the default recipe, a tenth of its time. Call it where training begins,
    so that nothing is kept of what came before. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.malloc_trim(0)
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(mmap_threshold, 32 << 20)  # the most that it takes


@dataclass(frozen=True, slots=True)
class Peak:
    """A measured rate and what it is the rate of."""

    flops: float
    name: str
    short: str = "peak"
    """The name for a progress line."""


def matmul_peak() -> Peak:
    """What torch's matmul reaches here at 1024 x 1024 x 1024, the faster of bf16 and fp32; takes 0.2 s."""
    rates = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a = torch.ones(1024, 1024, dtype=dtype)
        times = []
        a @ a
        for _ in range(3):
            start = time.perf_counter()
            a @ a
            times.append(time.perf_counter() - start)
        rates[name] = 2 * 1024**3 / statistics.median(times)
    best = max(rates, key=lambda name: rates[name])
    name = f"torch's {best} matmul at 1024, {threads()}"
    return Peak(rates[best], name, f"{best} matmul")


@dataclass(frozen=True, slots=True)
class Size:
    """Parameters of a model, and the arithmetic of training on one token."""

    total: int
    active: int
    """Parameters that one token passes in the main model (an embedding row counts once)."""
    flops_per_token: float
    """Forward and backward, without recomputation; MTP included."""


def model_size(model: nn.Module, config: ModelConfig, seq_len: int) -> Size:
    """Counts a model's parameters and FLOPs: 6 per active weight of a matrix product, and attention's own."""
    total = active = 0
    products = 0.0
    for name, parameter in model.named_parameters():
        total += parameter.numel()
        used = parameter.numel()
        if parameter.ndim == 3:  # experts
            used = used * config.num_experts_per_tok // config.n_routed_experts
        in_mtp = any(
            f"layers.{config.num_hidden_layers + k}." in name for k in range(config.num_nextn_predict_layers)
        )
        if "embed_tokens" in name:
            active += config.hidden_size
            continue
        if not in_mtp:
            active += used
        if parameter.ndim >= 2:
            products += used * (1 + config.num_nextn_predict_layers if "lm_head" in name else 1)
    heads = config.num_attention_heads * (config.qk_head_dim + config.v_head_dim)
    layers = config.num_hidden_layers + config.num_nextn_predict_layers
    # Two products over on average half the sequence, two operations each, once forward and twice backward.
    attention = layers * heads * seq_len / 2 * 2 * 3
    return Size(total, active, 6 * products + attention)
