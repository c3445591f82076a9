"""Rotary position embedding of multi-head latent attention, for queries and keys of all heads in one pass.

What happens between the up-projections and attention (paper, section 2.1.1, eq. 3, 4, 8 and 9). Shapes: B
sequences, T tokens, N heads; of a head P columns without a position, R rotated ones, V of a value. The same
bits on every CPU tier, on CUDA, and for any number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import dtype_of, require, require_float, require_own_memory, shape_of
from ._kinds import explained, register_fake
from .derivatives import require_no_grad

_ops = torch.ops.deepseek_ext


@explained
def rope_heads_(q: Tensor, kv: Tensor, k_rope: Tensor, rotation: Tensor, heads: int) -> Tensor:
    """Rotates the last R columns of each head of q in place, and returns the keys [B, N, T, P + R].

    q: bfloat16, float16 or float32 [B, T, N * (P + R)] with adjacent columns; kv: [B, T, N * (P + V)], a head
    being the P columns of its key, then its value; k_rope: [B, T, R], not yet rotated, the R columns of all
    keys; both in q's dtype; rotation: complex64 [T, R / 2], what each pair of adjacent columns is multiplied
    by at each position; heads: N. Computed in FP32, rounded once; the keys of a token lie side by side in
    memory. Not differentiable: rope_heads_backward_ computes its gradients. Raises ValueError for other
    dtypes and shapes, and for a tensor that requires grad.
    """
    require_no_grad("rope_heads_", "rope_heads_backward_", q=q, kv=kv, k_rope=k_rope)
    return _ops.rope_heads_.default(q, kv, k_rope, rotation, heads)


@explained
def rope_heads_backward_(
    grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, rotation: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of rope_heads_: (grad_kv [B, T, N * (P + V)], grad_k_rope [B, T, R]), and q's in place.

    grad_q, grad_k: bfloat16, float16 or float32 [B, N, T, P + R], of rotated q and of the keys; grad_q has
    adjacent columns, and its last R are rotated back; grad_v: [B, N, T, V], of the values in kv; all in one
    dtype; rotation: complex64 [T, R / 2] as rope_heads_ got it. grad_k_rope is added up over heads in FP32,
    in their order, rounded to the dtype, and rotated back. Not differentiable: see rope_heads_. Raises
    ValueError for other dtypes and shapes, and for a tensor that requires grad.
    """
    require_no_grad("rope_heads_backward_", "rope_heads_", grad_q=grad_q, grad_k=grad_k, grad_v=grad_v)
    return _ops.rope_heads_backward_.default(grad_q, grad_k, grad_v, rotation)


# Fakes. They state the same requirements as the kernels (csrc/ops/rope.h), in the same words.


def _check_dtype(op: str, name: str, x: Tensor, first: str, like: Tensor) -> None:
    require_float(op, name, x)
    require(
        x.dtype == like.dtype,
        f"{op}: {name} must have {first}'s dtype {dtype_of(like)}, got {dtype_of(x)}; convert it with .to()",
    )


def _check_written(op: str, name: str, x: Tensor) -> None:
    require(
        x.shape[-1] <= 1 or x.stride(-1) == 1,
        f"{op}: {name} must have adjacent columns, since it is written in place; call .contiguous()",
    )
    require_own_memory(op, name, x)


def _check_rotation(op: str, rotation: Tensor, tokens: int, width: int, of: str) -> None:
    require(
        rotation.dtype == torch.complex64,
        f"{op}: rotation must be complex64, got {dtype_of(rotation)}; make it with torch.polar(ones, angles)",
    )
    require(
        rotation.dim() == 2 and rotation.shape[0] == tokens,
        f"{op}: rotation must be [T, R / 2] with T = {tokens}, got {shape_of(rotation)}; "
        "give the rotation of each pair at each position",
    )
    require(
        2 * rotation.shape[1] <= width,
        f"{op}: rotation must be [T, R / 2] with R at most {of}'s head width {width}, "
        f"got {shape_of(rotation)}; the last R columns of a head are rotated",
    )


def _rope_heads_fake(q: Tensor, kv: Tensor, k_rope: Tensor, rotation: Tensor, heads: int) -> Tensor:
    op = "rope_heads_"
    for name, x in (("q", q), ("kv", kv), ("k_rope", k_rope)):
        _check_dtype(op, name, x, "q", q)
    require(heads > 0, f"{op}: heads must be positive, got {heads}; it is how many q holds side by side")
    require(
        q.dim() == 3 and q.shape[2] % heads == 0,
        f"{op}: q must be [B, T, N * (P + R)] with N = {heads} heads, got {shape_of(q)}; "
        "lay the heads of a token side by side",
    )
    _check_written(op, "q", q)
    width = q.shape[2] // heads
    _check_rotation(op, rotation, q.shape[1], width, "q")
    rotated = 2 * rotation.shape[1]
    wanted = [q.shape[0], q.shape[1], rotated]
    require(
        list(k_rope.shape) == wanted,
        f"{op}: k_rope must be [B, T, R] = {wanted}, got {shape_of(k_rope)}; it is what all heads of k share",
    )
    plain = width - rotated
    require(
        kv.dim() == 3
        and kv.shape[:2] == q.shape[:2]
        and kv.shape[2] % heads == 0
        and kv.shape[2] // heads >= plain,
        f"{op}: kv must be [B, T, N * (P + V)] with q's B and T, N = {heads} and P = {plain}, "
        f"got {shape_of(kv)}; a head is the unrotated columns of its key, then its value",
    )
    return q.new_empty((q.shape[0], q.shape[1], heads, width)).transpose(1, 2)


def _rope_heads_backward_fake(
    grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, rotation: Tensor
) -> tuple[Tensor, Tensor]:
    op = "rope_heads_backward_"
    for name, x in (("grad_q", grad_q), ("grad_k", grad_k), ("grad_v", grad_v)):
        _check_dtype(op, name, x, "grad_q", grad_q)
    require(
        grad_q.dim() == 4,
        f"{op}: grad_q must be [B, N, T, P + R], got {shape_of(grad_q)}; put heads before tokens",
    )
    _check_written(op, "grad_q", grad_q)
    require(
        grad_k.shape == grad_q.shape,
        f"{op}: grad_k must have grad_q's shape {shape_of(grad_q)}, got {shape_of(grad_k)}; "
        "pass causal_attention_backward's results",
    )
    require(
        grad_v.dim() == 4 and grad_v.shape[:3] == grad_q.shape[:3],
        f"{op}: grad_v must be [B, N, T, V] with grad_q's B, N and T, got {shape_of(grad_v)} "
        f"for grad_q {shape_of(grad_q)}; pass causal_attention_backward's results",
    )
    _check_rotation(op, rotation, grad_q.shape[2], grad_q.shape[3], "grad_q")
    sequences, heads, tokens, width = grad_q.shape
    rotated = 2 * rotation.shape[1]
    return (
        grad_q.new_empty((sequences, tokens, heads * (width - rotated + grad_v.shape[3]))),
        grad_q.new_empty((sequences, tokens, rotated)),
    )


register_fake("rope_heads_", _rope_heads_fake)
register_fake("rope_heads_backward_", _rope_heads_backward_fake)
