"""rope_heads_ and its gradients against what a user would write: complex numbers, repeated and concatenated.

Bytes are those of the elements that must move: of q the rotated columns twice, read and written, of kv the
keys' columns, and of the keys all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek_ext import ops

# Sequences, tokens, heads; plain, rotated and value columns: the two shapes of `make bench-step`, and the
# paper's heads.
SHAPES = {
    "recipe": (8, 256, 4, 32, 32, 64),
    "small": (4, 512, 8, 64, 32, 64),
    "wide": (1, 1024, 32, 128, 64, 128),
}


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> tuple[int, ...]:
    return SHAPES[request.param]


def rotation_of(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    angles = torch.rand(shape[1], shape[4] // 2, generator=rng)
    return torch.polar(torch.ones(angles.shape), angles)


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * rotation[:, None]).flatten(-2).to(x.dtype)


def theirs(q: Tensor, kv: Tensor, k_rope: Tensor, rotation: Tensor, heads: int) -> list[Tensor]:
    """Queries, keys and values [B, N, T, width]."""
    q, kv = q.unflatten(-1, (heads, -1)), kv.unflatten(-1, (heads, -1))
    width, turned = k_rope.shape[-1], rotated(k_rope.unsqueeze(2), rotation)
    q_plain, q_rope = q.split([q.shape[-1] - width, width], -1)
    k_plain, v = kv.split([q_plain.shape[-1], kv.shape[-1] - q_plain.shape[-1]], -1)
    q = torch.cat([q_plain, rotated(q_rope, rotation)], -1)
    k = torch.cat([k_plain, turned.expand(-1, -1, heads, -1)], -1)
    return [x.transpose(1, 2) for x in (q, k, v)]


def operands(shape: tuple[int, ...], rng: torch.Generator) -> list[Tensor]:
    b, t, n, p, r, v = shape
    return [torch.randn(b, t, w, generator=rng).bfloat16() for w in (n * (p + r), n * (p + v), r)]


def test_rope_heads(shape: tuple[int, ...], threads: int, versus: Callable[..., Any]) -> None:
    b, t, n, p, r, _ = shape
    rng = torch.Generator().manual_seed(0)
    q, kv, k_rope = operands(shape, rng)
    rotation = rotation_of(shape, rng)
    versus(
        lambda: ops.rope_heads_(q, kv, k_rope, rotation, n),
        {"torch": lambda: theirs(q, kv, k_rope, rotation, n)},
        bytes_moved=2 * b * t * (n * (2 * p + 3 * r) + r),
        compiled=lambda: theirs(q, kv, k_rope, rotation, n),
    )


def test_rope_heads_backward(shape: tuple[int, ...], threads: int, versus: Callable[..., Any]) -> None:
    b, t, n, p, r, v = shape
    rng = torch.Generator().manual_seed(0)
    leaves = [x.requires_grad_() for x in operands(shape, rng)]
    rotation = rotation_of(shape, rng)
    results = theirs(*leaves, rotation, n)
    grads = [torch.randn(b, t, n, w, generator=rng).bfloat16().transpose(1, 2) for w in (p + r, p + r, v)]
    versus(
        lambda: ops.rope_heads_backward_(*grads, rotation),
        {"torch": lambda: torch.autograd.grad(results, leaves, grads, retain_graph=True)},
        bytes_moved=2 * b * t * (n * (2 * p + 3 * r + 2 * v) + r),
    )
