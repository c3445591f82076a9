"""Writes vectors.npz from deepseek_ext.reference; routing is worked out here in plain Python.

python tests/golden/generate.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deepseek_ext.reference import quantize as reference

NAN, INF = float("nan"), float("inf")


def numbers(m: int, k: int, seed: int) -> Tensor:
    """Normal numbers in rows and columns of very different size, and what goes wrong most easily."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(m, k, generator=rng, dtype=torch.float64)
    x *= 2.0 ** torch.randint(-12, 12, (m, 1), generator=rng) * 2.0 ** torch.randint(
        -4, 4, (1, k), generator=rng
    )
    x = x.float()
    x[0, :4] = torch.tensor([0.0, -0.0, NAN, -INF])
    x[1] *= 2.0**-140  # subnormal, below the scale rule's floor
    x[2] *= 1e36
    x[3] = 0
    x[4, ::5] = (torch.arange(len(x[4, ::5])) - 9) * 0.0625  # ties
    return x


def bits(x: Tensor) -> np.ndarray:
    if x.dtype == torch.float32:
        return torch.where(x.isnan(), NAN, x).contiguous().view(torch.int32).numpy().view(np.uint32)
    return x.view(torch.uint8).numpy() if x.dtype == torch.float8_e4m3fn else x.numpy()


def best(values: list[float], count: int) -> list[int]:
    """The largest values' indices, by repeated search: a later equal never replaces an earlier one."""
    left = [-INF if v != v else v for v in values]
    taken: list[int] = []
    for _ in range(count):
        winner = -1
        for i, value in enumerate(left):
            if i not in taken and (winner < 0 or value > left[winner]):
                winner = i
        taken.append(winner)
    return taken


def routing() -> dict[str, np.ndarray]:
    """16 experts in 4 groups, 2 groups and 4 experts chosen; every score is 0.5 or NaN, and biases tie."""
    experts, n_groups, topk_groups, top_k = 16, 4, 2, 4
    bias = np.array([0, 0, 1, -8, 1, 0, 0, -8, 0, 1, 0, 0, -9, -9, -9, -9], dtype=np.float32) / 16
    logits = np.zeros((5, experts), dtype=np.float32)
    logits[1, [2, 4]] = NAN
    logits[2, :12] = NAN
    logits[3] = NAN
    logits[4, [0, 1, 2]] = NAN
    indices = []
    for row in logits:
        choice = [NAN if np.isnan(v) else 0.5 + float(b) for v, b in zip(row, bias, strict=True)]
        size = experts // n_groups
        groups = [choice[g * size : (g + 1) * size] for g in range(n_groups)]
        score = [sum(-INF if g[i] != g[i] else g[i] for i in best(g, 2)) for g in groups]
        kept = best(score, topk_groups)
        indices.append(best([c if i // size in kept else -INF for i, c in enumerate(choice)], top_k))
    return {
        "routing_logits": logits.view(np.uint32),
        "routing_bias": bias.view(np.uint32),
        "routing_shape": np.array([top_k, n_groups, topk_groups], dtype=np.int32),
        "routing_indices": np.array(indices, dtype=np.int32),
    }


def vectors() -> dict[str, np.ndarray]:
    x, w = numbers(12, 300, 1), numbers(150, 20, 2)
    offs = torch.tensor([3, 3, 135, 140], dtype=torch.int32)
    tiles = reference.quantize_tiles(x)
    w_tiles = reference.quantize_tiles(w)
    pairs = {
        "tiles": tiles,
        "tiles_p2": reference.quantize_tiles(x, power_of_2=True),
        "blocks": reference.quantize_blocks(w),
        "transposed": reference.quantize_tiles_transposed(w),
        "grouped": reference.quantize_tiles_transposed(w, offs),
        "retile_in": w_tiles,
        "retile": reference.retile(*w_tiles, offs),
    }
    packed, packed_scales = reference.quantize_e5m6(x)
    arrays = {"x": x, "w": w, "offs": offs, "tiles_dequantized": reference.dequantize_tiles(*tiles)}
    arrays |= {"e5m6_packed": packed, "e5m6_scales": packed_scales}
    for name, (codes, scales) in pairs.items():
        arrays |= {f"{name}_codes": codes, f"{name}_scales": scales}
    return {name: bits(array) for name, array in arrays.items()} | routing()


if __name__ == "__main__":
    np.savez_compressed(Path(__file__).parent / "vectors.npz", **vectors())
