"""causal_attention and its backward: against the formulas in FP64, within bounds derived term by term.

Rounding errors, with u = 2^-24 and n u for a sum of n terms: a score is off by d_x, so its exponential by
the factor 1 + 2 d_x, to which exp and the normalisation add a few u. `word` is what rounding a factor of a
product to BF16 adds, in the tier that does; `stored` the rounding of a result to its dtype. On a GPU, where
torch's kernels multiply FP32 in pieces, sums of a tensor core are cut and exponentials are approximate, u is
2^-21, a factor is rounded to 11 bits at least, and as FP16 loses what is below 2^-24 (`lost`).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deepseek_ext import ops
from deepseek_ext.reference import attention as reference

U = 2.0**-24
STORED = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
SHAPES = [(1, 1, 1, 4, 4), (2, 3, 17, 33, 7), (1, 2, 64, 32, 32), (1, 2, 130, 96, 64), (1, 1, 257, 24, 40)]


def inputs(
    shape: tuple[int, ...], dtype: torch.dtype, rng: torch.Generator, size: float = 1.0
) -> list[Tensor]:
    """q, k, v and a gradient, as the layer has them: heads of a token side by side."""
    b, n, t, width, value = shape
    widths = (width, width, value, value)
    made = [torch.randn(b, t, n, w, generator=rng).mul(size).to(dtype).transpose(1, 2) for w in widths]
    return [x.clone(memory_format=torch.preserve_format) for x in made]


def documents(b: int, t: int, rng: torch.Generator) -> Tensor:
    """Random starts, non-decreasing and never behind their own position."""
    begins = torch.rand(b, t, generator=rng) < 0.05
    at = torch.arange(t, dtype=torch.int32).expand(b, t)
    return torch.where(begins, at, torch.zeros_like(at)).cummax(1).values.int()


def word_of(dtype: torch.dtype, backend: str) -> float:
    """What rounding a factor of a product adds."""
    if backend == "cuda":
        return {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-20}[dtype]
    return 2.0**-8 if backend.startswith("avx512_bf16") and dtype == torch.bfloat16 else 0.0


def exact(q: Tensor, k: Tensor, scale: float, starts: Tensor | None, u: float = U) -> tuple[Tensor, Tensor]:
    """Scores and a bound of their error."""
    x = (q @ k.mT) * scale
    off = (q.abs() @ k.abs().mT) * scale * (q.shape[-1] + 3) * u
    at = torch.arange(q.shape[2])
    seen = at <= at[:, None]
    if starts is not None:
        seen = seen & (at >= starts[:, None, :, None])
    return x.masked_fill(~seen, float("-inf")), off.masked_fill(~seen, 0.0)


@pytest.mark.parametrize("masked", [False, True], ids=["causal", "documents"])
@pytest.mark.parametrize("dtype", STORED, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_within_bounds(
    shape: tuple[int, ...], dtype: torch.dtype, masked: bool, backend: str, rng: torch.Generator
) -> None:
    if backend == "simulator":
        pytest.skip("a GPU runs torch's kernels for attention")
    b, _, t, width, value = shape
    q, k, v, grad = inputs(shape, dtype, rng)
    starts = documents(b, t, rng) if masked else None
    scale = 2.0 / width**0.5
    out, logsumexp = ops.causal_attention(q, k, v, scale, starts)
    grads = ops.causal_attention_backward(grad, q, k, v, out, logsumexp, scale, starts)

    word, stored = word_of(dtype, backend), STORED[dtype]
    u = 2.0**-21 if backend == "cuda" else U
    lost = 2.0**-24 if backend == "cuda" and dtype == torch.float16 else 0.0
    q, k, v, grad, saved, sums = (x.double() for x in (q, k, v, grad, out, logsumexp))
    x, off = exact(q, k, scale, starts, u)
    p = x.softmax(-1)
    p_off = p * (2 * off.amax(-1, keepdim=True) + 2 * off + (t + 16) * u)

    wanted = p @ v
    bound = (p_off + p * (word + t * u) + lost) @ v.abs()
    assert ((out - wanted).abs() <= bound + stored * wanted.abs() + 1e-30).all()
    bound = off.amax(-1) + (t + 8) * u * (1 + x.logsumexp(-1).abs())
    assert ((logsumexp - x.logsumexp(-1)).abs() <= bound).all()

    # Backward, from out and logsumexp as they are: their own errors are not its.
    p = (x - sums[..., None]).exp()
    p_off = p * (2 * off + (8 + x.abs().nan_to_num(posinf=0) + sums.abs()[..., None]) * 2 * u)
    delta = (grad * saved).sum(-1, keepdim=True)
    dp = grad @ v.mT
    change = p * (dp - delta) * scale
    terms = (grad.abs() @ v.abs().mT + (grad * saved).abs().sum(-1, keepdim=True)) * (value + 4) * u
    change_off = scale * (p_off * (dp - delta).abs() + p * terms) + change.abs() * (word + 4 * u) + lost
    n = t * u
    for got, result, bound in (
        (grads[0], change @ k, (change_off + n * change.abs()) @ k.abs()),
        (grads[1], change.mT @ q, (change_off + n * change.abs()).mT @ q.abs()),
        (grads[2], p.mT @ grad, (p_off + p * (word + n) + lost).mT @ grad.abs()),
    ):
        assert got.dtype == dtype
        assert ((got - result).abs() <= bound + stored * result.abs() + 2.0**-24).all()


def test_reference_is_autograds(rng: torch.Generator) -> None:
    """The formulas above and the reference agree in FP64, and so does torch's own attention."""
    q, k, v, grad = (x.double() for x in inputs((2, 2, 9, 6, 5), torch.float32, rng))
    for starts in (None, documents(2, 9, rng)):
        out, logsumexp = reference.causal_attention(q, k, v, 0.4, starts)
        x, _ = exact(q, k, 0.4, starts)
        p = (x - logsumexp[..., None]).exp()
        change = p * (grad @ v.mT - (grad * out).sum(-1, keepdim=True)) * 0.4
        got = reference.causal_attention_backward(grad, q, k, v, out, logsumexp, 0.4, starts)
        for a, b in zip(got, (change @ k, change.mT @ q, p.mT @ grad), strict=True):
            torch.testing.assert_close(a, b)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.4)
    torch.testing.assert_close(reference.causal_attention(q, k, v, 0.4)[0], wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_gradient_through_autograd(dtype: torch.dtype, rng: torch.Generator) -> None:
    q, k, v, grad = inputs((2, 2, 70, 24, 16), dtype, rng)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out, logsumexp = ops.causal_attention(*leaves, 0.2)
    assert not logsumexp.requires_grad
    got = torch.autograd.grad(out, leaves, grad)
    with torch.no_grad():
        wanted = ops.causal_attention_backward(grad, q, k, v, out, logsumexp, 0.2)
    for a, b in zip(got, wanted, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", STORED, ids=lambda d: str(d).removeprefix("torch."))
def test_same_bits_for_any_layout_and_number_of_threads(
    dtype: torch.dtype, cpu_tier: str, rng: torch.Generator
) -> None:
    q, k, v, grad = inputs((3, 3, 97, 40, 24), dtype, rng)
    wide = torch.zeros(3, 3, 97, 80, dtype=dtype)
    wide[..., ::2] = q
    results = []
    before = torch.get_num_threads()
    try:
        for threads, layout in ((1, Tensor.contiguous), (2, lambda x: x), (2, Tensor.contiguous)):
            torch.set_num_threads(threads)
            ours = [wide[..., ::2] if x is q and threads == 2 else layout(x) for x in (q, k, v)]
            out, logsumexp = ops.causal_attention(*ours, 0.3)
            results.append([out, logsumexp, *ops.causal_attention_backward(grad, *ours, out, logsumexp, 0.3)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_later_tokens_change_no_bit(cpu_tier: str, rng: torch.Generator) -> None:
    q, k, v, _ = inputs((1, 2, 150, 32, 32), torch.bfloat16, rng)
    out, logsumexp = ops.causal_attention(q, k, v, 0.3)
    for cut in (1, 63, 64, 100):
        changed = [torch.cat([x[:, :, :cut], torch.randn_like(x[:, :, cut:])], 2) for x in (q, k, v)]
        again, sums = ops.causal_attention(*changed, 0.3)
        assert torch.equal(again[:, :, :cut], out[:, :, :cut])
        assert torch.equal(sums[:, :, :cut], logsumexp[:, :, :cut])


def test_a_document_ignores_what_others_say(cpu_tier: str, rng: torch.Generator) -> None:
    """Whatever stands before a start, infinite or NaN queries included, reaches nothing behind it."""
    q, k, v, grad = inputs((1, 1, 200, 16, 16), torch.float32, rng)
    starts = torch.zeros(1, 200, dtype=torch.int32)
    starts[:, 70:] = 70
    out, logsumexp = ops.causal_attention(q, k, v, 0.3, starts)
    grads = ops.causal_attention_backward(grad, q, k, v, out, logsumexp, 0.3, starts)
    k[:, :, :70], v[:, :, :70] = 3.0, -2.0
    again, sums = ops.causal_attention(q, k, v, 0.3, starts)
    changed = ops.causal_attention_backward(grad, q, k, v, again, sums, 0.3, starts)
    assert torch.equal(again[:, :, 70:], out[:, :, 70:])
    for a, b in zip(changed, grads, strict=True):
        assert torch.equal(a[:, :, 70:], b[:, :, 70:])


def test_huge_and_tiny_scores(cpu_tier: str, rng: torch.Generator) -> None:
    """Scores of thousands overflow no exponential; equal scores share out evenly."""
    q, k, v, grad = inputs((1, 2, 80, 16, 16), torch.float32, rng, size=100.0)
    out, logsumexp = ops.causal_attention(q, k, v, 1.0)
    assert torch.isfinite(out).all()
    assert torch.isfinite(logsumexp).all()
    assert all(
        torch.isfinite(g).all() for g in ops.causal_attention_backward(grad, q, k, v, out, logsumexp, 1.0)
    )
    x, _ = exact(q.double(), k.double(), 1.0, None)
    torch.testing.assert_close(out.double(), x.softmax(-1) @ v.double(), rtol=0.05, atol=1.0)
    even, _ = ops.causal_attention(q * 0, k, v, 1.0)
    counts = torch.arange(1, 81).view(80, 1)
    torch.testing.assert_close(even, (v.double().cumsum(2) / counts).float(), rtol=1e-5, atol=1e-4)


def test_nan_stays_where_it_belongs(cpu_tier: str, rng: torch.Generator) -> None:
    q, k, v, _ = inputs((1, 2, 80, 16, 16), torch.float32, rng)
    q[0, 0, 30, 3] = float("nan")
    out, logsumexp = ops.causal_attention(q, k, v, 0.3)
    bad = torch.zeros(1, 2, 80, dtype=torch.bool)
    bad[0, 0, 30] = True
    assert torch.equal(out.isnan().any(-1), bad)
    assert torch.equal(logsumexp.isnan(), bad)
    k[0, 1, 40, 0] = float("nan")
    out, _ = ops.causal_attention(q, k, v, 0.3)
    assert out[0, 1, 40:].isnan().any(-1).all()
    assert not out[0, 1, :40].isnan().any()


@pytest.mark.parametrize("shape", [(0, 2, 5), (2, 0, 5), (2, 2, 0)], ids=str)
def test_empty(shape: tuple[int, int, int], backend: str) -> None:
    if backend == "simulator":
        pytest.skip("a GPU runs torch's kernels for attention")
    q, v = torch.zeros(*shape, 8), torch.zeros(*shape, 4)
    out, logsumexp = ops.causal_attention(q, q, v, 1.0)
    assert (out.shape, logsumexp.shape) == (v.shape, shape)
    grads = ops.causal_attention_backward(v, q, q, v, out, logsumexp, 1.0)
    assert [g.shape for g in grads] == [q.shape, q.shape, v.shape]


def test_opcheck(rng: torch.Generator) -> None:
    q, k, v, grad = inputs((2, 2, 9, 8, 4), torch.float32, rng)
    starts = documents(2, 9, rng)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(torch.ops.deepseek_ext.causal_attention, (*leaves, 0.3, starts))
    out, logsumexp = ops.causal_attention(q, k, v, 0.3)
    torch.library.opcheck(
        torch.ops.deepseek_ext.causal_attention_backward, (grad, q, k, v, out, logsumexp, 0.3)
    )


def wrong_arguments() -> list[Any]:
    q, v = torch.zeros(2, 3, 5, 8), torch.zeros(2, 3, 5, 4)
    starts = torch.zeros(2, 5, dtype=torch.int32)
    late = starts.clone()
    late[1, 3] = 4
    return [
        ((q.double(), q, v, 1.0), "q must be bfloat16, float16 or float32, got float64"),
        ((q[0], q, v, 1.0), r"q must be \[B, N, T, width\], got \[3, 5, 8\]"),
        ((q, q.bfloat16(), v, 1.0), "k must have q's dtype float32, got bfloat16"),
        ((q, q[:, :1], v, 1.0), r"k must have q's shape \[2, 3, 5, 8\], got \[2, 1, 5, 8\]"),
        ((q, q, v[:, :, :4], 1.0), r"v must be .* got \[2, 3, 4, 4\] for q \[2, 3, 5, 8\]"),
        ((q, q, v, 0.0), "scale must be positive and finite, got 0"),
        ((q, q, v, float("inf")), "scale must be positive and finite, got inf"),
        ((q, q, v, 1.0, starts.long()), "starts must be int32, got int64"),
        ((q, q, v, 1.0, starts[:, :4]), r"starts must be \[B, T\] = \[2, 5\], got \[2, 4\]"),
        ((q, q, v, 1.0, late), r"starts\[1, 3\] must be between 0 and its own position 3, got 4"),
        ((q, q, v, 1.0, starts - 1), r"starts\[0, 0\] must be between 0 and its own position 0, got -1"),
    ]


@pytest.mark.parametrize(("args", "message"), wrong_arguments(), ids=lambda x: str(x)[:40])
def test_wrong_arguments(args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^causal_attention: {message}; "):
        ops.causal_attention(*args)
    if "between" not in message:  # a value, which fakes have none of
        fake = [x.to("meta") if isinstance(x, Tensor) else x for x in args]
        with pytest.raises(ValueError, match=f"^causal_attention: {message}; "):
            ops.causal_attention(*fake)


def test_wrong_arguments_of_backward() -> None:
    q, v = torch.zeros(2, 3, 5, 8), torch.zeros(2, 3, 5, 4)
    sums = torch.zeros(2, 3, 5)
    for args, message in (
        ((q, q, q, v, v, sums), r"grad must have v's shape \[2, 3, 5, 4\], got \[2, 3, 5, 8\]"),
        ((v, q, q, v, q, sums), r"out must have v's shape \[2, 3, 5, 4\], got \[2, 3, 5, 8\]"),
        ((v, q, q, v, v, sums[0]), r"logsumexp must be float32 .* got float32 \[3, 5\]"),
    ):
        for where in ("cpu", "meta"):
            with pytest.raises(ValueError, match=f"^causal_attention_backward: {message}; "):
                ops.causal_attention_backward(*(x.to(where) for x in args), 1.0)
