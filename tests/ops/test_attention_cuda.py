"""causal_attention on a GPU, without one: what torch's kernels are given, and what is made of their results.

In the place of torch's kernels stand ones that demand what those rely on (and torch only partly checks),
read and write memory as they do, and compute with the formulas in plain PyTorch. On meta tensors torch says
what shapes and strides the kernels themselves return.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from test_attention import documents, inputs
from torch import Tensor

from deepseek_ext import ops
from deepseek_ext.ops import attention as family
from deepseek_ext.ops import attention_cuda
from deepseek_ext.reference import attention as reference

# B, N, T, widths of key and value: ragged everywhere, one token, the model's 192 and 128, wider than flash.
SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 3, 17, 7, 72),
    (2, 3, 33, 8, 8),
    (3, 1, 64, 72, 7),
    (1, 2, 40, 192, 128),
    (2, 2, 19, 200, 64),
    (2, 2, 9, 0, 5),
    (2, 2, 9, 5, 0),
]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]

parametrized = pytest.mark.parametrize("shape", SHAPES, ids=str)
with_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
with_masks = pytest.mark.parametrize("masked", [False, True], ids=["causal", "documents"])


def is_readable(x: Tensor) -> bool:
    """In 16-byte pieces, each row of a head whole."""
    piece = 16 // x.element_size()
    steps = all(s % piece == 0 for s in x.stride()[:-1])
    return steps and x.stride(-1) == 1 and x.shape[-1] % 8 == 0 and x.data_ptr() % 16 == 0


def is_side_by_side(x: Tensor) -> bool:
    return x.transpose(1, 2).is_contiguous()


def starts_of(mask: Tensor | None, q: Tensor) -> Tensor | None:
    """What the mask was made of, after what the kernels demand of it."""
    if mask is None:
        return None
    b, n, t, _ = q.shape
    assert mask.shape == (b, n, t, t)
    assert mask.dtype == q.dtype
    assert mask.stride(3) == 1
    assert all(s % 16 == 0 for s in mask.stride()[:3])
    assert ((mask == 0) | (mask == -math.inf)).all()
    starts = (mask[:, 0] == 0).int().argmax(-1).int()
    assert torch.equal(mask, attention_cuda.mask_of(starts, q)), "gaps, or later positions"
    return starts


def gradients(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    sums: Tensor,
    scale: float,
    starts: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Of q, k and v, by the formulas that the kernels follow: with `out` and `sums` as they are."""
    at = torch.arange(q.shape[2])
    seen = at <= at[:, None]
    if starts is not None:
        seen = seen & (at >= starts[:, None, :, None])
    dtype = q.dtype
    q, k, v, dy, y = (x.double() for x in (q, k, v, grad, out))
    p = ((q @ k.mT) * scale - sums[..., None]).exp() * seen
    change = p * (dy @ v.mT - (dy * y).sum(-1, keepdim=True)) * scale
    return tuple(x.to(dtype) for x in (change @ k, change.mT @ q, p.mT @ dy))


def flash(
    q: Tensor, k: Tensor, v: Tensor, dropout: float, causal: bool, *, scale: float
) -> tuple[Tensor, Tensor, None]:
    assert q.dtype in (torch.float16, torch.bfloat16)
    assert q.shape == k.shape == v.shape
    assert 0 < q.shape[3] <= 192
    assert q.numel() > 0
    assert all(is_readable(x) for x in (q, k, v))
    assert (dropout, causal) == (0.0, True)
    out, sums = reference.causal_attention(q, k, v, scale)
    return torch.empty_like(q).copy_(out), sums.contiguous(), None


def flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, *rest: object, scale: float
) -> tuple[Tensor, ...]:
    assert grad.shape == out.shape == q.shape == k.shape == v.shape
    assert all(is_readable(x) for x in (grad, q, k, v, out))
    assert sums.shape == q.shape[:3]
    assert sums.is_contiguous()
    assert rest[:6] == (None, None, q.shape[2], q.shape[2], 0.0, True)
    return gradients(grad, q, k, v, out, sums, scale)


def efficient(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    with_sums: bool,
    dropout: float,
    causal: bool,
    *,
    scale: float,
) -> tuple[Tensor, Tensor, None]:
    assert min(q.shape[3], v.shape[3]) > 0
    assert q.numel() > 0
    assert all(is_readable(x) for x in (q, k, v))
    assert (with_sums, dropout, causal) == (True, 0.0, mask is None)
    out, sums = reference.causal_attention(q, k, v, scale, starts_of(mask, q))
    padded = torch.full((*sums.shape[:2], sums.shape[2] + -sums.shape[2] % 32), math.inf)
    padded[..., : sums.shape[2]] = sums
    return attention_cuda.new_heads(v).copy_(out), padded, None


def efficient_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    out: Tensor,
    sums: Tensor,
    *rest: object,
    scale: float,
) -> tuple[Tensor | None, ...]:
    b, n, t, width = out.shape
    assert all(is_readable(x) for x in (grad, q, k, v))
    assert out.data_ptr() % 16 == 0
    assert sums.shape == (b, n, t + -t % 32)
    assert sums.is_contiguous()
    assert (sums[..., t:] == math.inf).all()
    assert rest[2:] == (0.0, [True, True, True, False], mask is None)
    # Rows by width and heads, whatever the strides say.
    out = out.as_strided(out.shape, (out.stride(0), out.stride(1), n * width, 1))
    grads = gradients(grad, q, k, v, out, sums[..., :t].contiguous(), scale, starts_of(mask, q))
    return *(attention_cuda.new_heads(x).copy_(x) for x in grads), None


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = {
        "_scaled_dot_product_flash_attention": flash,
        "_scaled_dot_product_flash_attention_backward": flash_backward,
        "_scaled_dot_product_efficient_attention": efficient,
        "_scaled_dot_product_efficient_attention_backward": efficient_backward,
    }
    monkeypatch.setattr(attention_cuda, "_aten", SimpleNamespace(**kernels))


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The numbers of x, heads side by side, elsewhere in memory."""
    if layout == "heads apart":
        return x.contiguous()
    if layout == "at an odd address":
        flat = torch.empty(x.numel() + 1, dtype=x.dtype)
        return flat[1:].view(x.transpose(1, 2).shape).transpose(1, 2).copy_(x)
    if layout == "part of wider rows":
        return torch.cat([x, x], -1)[..., : x.shape[-1]]
    return x


LAYOUTS = ["side by side", "heads apart", "at an odd address", "part of wider rows"]


@with_masks
@with_dtypes
@parametrized
def test_kernels_get_what_they_demand(
    shape: tuple[int, ...], dtype: torch.dtype, masked: bool, stand_ins: None, rng: torch.Generator
) -> None:
    """And results are those of the operands as they were, before zeros widened them."""
    starts = documents(shape[0], shape[2], rng) if masked else None
    q, k, v, grad = inputs(shape, dtype, rng)
    wanted, wanted_sums = reference.causal_attention(q, k, v, 0.4, starts)
    wanted_grads = gradients(grad, q, k, v, wanted, wanted_sums, 0.4, starts)
    for layout in LAYOUTS:
        q, k, v, grad, out = (laid_out(x, layout) for x in (q, k, v, grad, wanted))
        result, sums = family._causal_attention_cuda(q, k, v, 0.4, starts)
        torch.testing.assert_close(result, wanted)
        torch.testing.assert_close(sums, wanted_sums)
        strided = torch.stack([wanted_sums, wanted_sums], -1)[..., 0]
        grads = family._causal_attention_backward_cuda(grad, q, k, v, out, strided, 0.4, starts)
        for got, expected in zip(grads, wanted_grads, strict=True):
            torch.testing.assert_close(got, expected)


@with_masks
@with_dtypes
@pytest.mark.parametrize("shape", [*SHAPES, (0, 2, 5, 8, 8), (2, 0, 5, 8, 8), (2, 2, 0, 8, 8)], ids=str)
def test_results_have_the_strides_that_the_fake_has(
    shape: tuple[int, ...], dtype: torch.dtype, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own statement of its kernels' results takes the part of a device."""
    monkeypatch.setattr(attention_cuda, "_address", lambda x: x.storage_offset() * x.element_size())
    b, n, t, width, value = shape
    q = torch.empty(b, n, t, width, device="meta", dtype=dtype)
    k = torch.empty(b, t, n, width, device="meta", dtype=dtype).transpose(1, 2)
    kv = torch.empty(b, t, n, width + value, device="meta", dtype=dtype).transpose(1, 2)
    v = kv.narrow(3, width, value)
    starts = torch.empty(b, t, dtype=torch.int32, device="meta") if masked else None
    results = family._causal_attention_cuda(q, k, v, 0.3, starts)
    fakes = family._causal_attention_fake(q, k, v, 0.3, starts)
    backward = (torch.empty_like(v), q, k, v, *fakes, 0.3, starts)
    results += family._causal_attention_backward_cuda(*backward)
    fakes += family._causal_attention_backward_fake(*backward)
    for got, wanted in zip(results, fakes, strict=True):
        assert (got.shape, got.dtype, got.device) == (wanted.shape, wanted.dtype, wanted.device)
        assert got.numel() == 0 or got.stride() == wanted.stride()


def test_backward_checks_its_arguments(stand_ins: None) -> None:
    q, v, sums = torch.zeros(2, 3, 5, 8), torch.zeros(2, 3, 5, 4), torch.zeros(2, 3, 5)
    for args, message in (
        ((q, q, q, v, v, sums), r"grad must have v's shape"),
        ((v, q, q, v, v.bfloat16(), sums), "out must have q's dtype"),
        ((v, q, q, v, v, sums[0]), "logsumexp must be float32"),
    ):
        with pytest.raises(ValueError, match=f"^causal_attention_backward: {message}"):
            family._causal_attention_backward_cuda(*args, 1.0)


@pytest.mark.parametrize(("value", "position"), [(4, 3), (-1, 0)])
def test_starts_are_checked_where_checks_are_asked_for(
    value: int, position: int, stand_ins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the words of the CPU's kernel."""
    q, v = torch.zeros(2, 3, 5, 8), torch.zeros(2, 3, 5, 4)
    starts = torch.zeros(2, 5, dtype=torch.int32)
    starts[1, position] = value
    with pytest.raises(ValueError, match="starts") as of_cpu:
        ops.causal_attention(q, q, v, 1.0, starts)
    monkeypatch.setenv("DSE_CHECK", "1")
    with pytest.raises(ValueError, match="starts") as caught:
        family._causal_attention_cuda(q, q, v, 1.0, starts)
    assert str(caught.value) == str(of_cpu.value)
    sums = torch.zeros(2, 3, 5)
    with pytest.raises(ValueError, match=r"^causal_attention_backward: starts\[1, "):
        family._causal_attention_backward_cuda(v, q, q, v, v, sums, 1.0, starts)
    monkeypatch.setattr(attention_cuda, "_is_capturing", lambda _: True)
    with pytest.raises(RuntimeError, match=r"^causal_attention: DSE_CHECK=1 waits for the GPU"):
        family._causal_attention_cuda(q, q, v, 1.0, starts)
    monkeypatch.setenv("DSE_CHECK", "0")
    attention_cuda.check_starts("causal_attention", starts)


def test_mask_of_documents() -> None:
    q = torch.zeros(1, 2, 4, 8)
    mask = attention_cuda.mask_of(torch.tensor([[0, 0, 2, 2]], dtype=torch.int32), q)
    seen = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]], dtype=torch.bool)
    assert torch.equal(mask == 0, seen.expand(1, 2, 4, 4))
    assert mask[0, 0, 0, 1] == -math.inf


@pytest.mark.gpu_backends
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@with_masks
@with_dtypes
@parametrized
def test_opcheck_on_a_gpu(
    shape: tuple[int, ...], dtype: torch.dtype, masked: bool, rng: torch.Generator
) -> None:
    starts = documents(shape[0], shape[2], rng).cuda() if masked else None
    q, k, v, grad = (x.cuda() for x in inputs(shape, dtype, rng))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    kinds = ("test_schema", "test_faketensor")  # gradients repeat no bits there
    torch.library.opcheck(torch.ops.deepseek_ext.causal_attention, (*leaves, 0.3, starts), test_utils=kinds)
    q, k, v = (x.detach() for x in leaves)
    out, sums = ops.causal_attention(q, k, v, 0.3, starts)
    torch.library.opcheck(
        torch.ops.deepseek_ext.causal_attention_backward,
        (grad, q, k, v, out, sums, 0.3, starts),
        test_utils=kinds,
    )
