"""rope_heads_ and its gradients: the reference's bits on every tier and device, in any layout; autograd."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode

from deepseek_ext import ops
from deepseek_ext.reference import rope as reference

U = 2.0**-24
STORED = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
each_dtype = pytest.mark.parametrize("dtype", STORED, ids=lambda d: str(d).removeprefix("torch."))


class Shape(NamedTuple):
    """Of B sequences of T tokens with N heads: P plain columns of a head, R rotated ones, V of a value."""

    b: int
    t: int
    n: int
    p: int
    r: int
    v: int


SHAPES = [
    Shape(1, 1, 1, 1, 2, 1),
    Shape(2, 5, 3, 16, 8, 24),
    Shape(2, 3, 5, 7, 6, 9),
    Shape(1, 37, 4, 40, 72, 16),
    Shape(3, 2, 2, 64, 130, 200),
    Shape(1, 3, 33, 8, 16, 8),
    Shape(1, 4, 2, 2080, 8, 8),
]
EMPTY = [
    Shape(0, 3, 2, 8, 4, 8),
    Shape(2, 0, 2, 8, 4, 8),
    Shape(2, 3, 2, 8, 0, 8),
    Shape(2, 3, 2, 0, 8, 8),
    Shape(2, 3, 2, 8, 8, 0),
    Shape(2, 3, 2, 0, 0, 0),
]
each_shape = pytest.mark.parametrize("shape", [*SHAPES, *EMPTY], ids=lambda s: "-".join(map(str, s)))


def rotation_of(shape: Shape, rng: torch.Generator) -> Tensor:
    """With a magnitude other than 1, as YaRN may have it."""
    return torch.polar(torch.tensor(1.125), 100 * torch.rand(shape.t, shape.r // 2, generator=rng))


def inputs(shape: Shape, dtype: torch.dtype, rng: torch.Generator) -> list[Tensor]:
    """q, kv, k_rope and rotation."""
    b, t, n, p, r, v = shape
    made = [torch.randn(b, t, w, generator=rng).to(dtype) for w in (n * (p + r), n * (p + v), r)]
    return [*made, rotation_of(shape, rng)]


def gradients(shape: Shape, dtype: torch.dtype, rng: torch.Generator) -> list[Tensor]:
    """Of q, k and v, as attention returns them; and the rotation."""
    b, t, n, p, r, v = shape
    made = [torch.randn(b, t, n, w, generator=rng).to(dtype).transpose(1, 2) for w in (p + r, p + r, v)]
    return [*made, rotation_of(shape, rng)]


def forward(
    q: Tensor, kv: Tensor, k_rope: Tensor, rotation: Tensor, heads: int, by: Any = ops
) -> list[Tensor]:
    q = q.clone()
    return [q, by.rope_heads_(q, kv, k_rope, rotation, heads)]


def backward(grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, rotation: Tensor, by: Any = ops) -> list[Tensor]:
    grad_q = grad_q.clone()
    return [grad_q, *by.rope_heads_backward_(grad_q, grad_k, grad_v, rotation)]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """A NaN is like any other."""
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    integers = {2: torch.int16, 4: torch.int32}[a.element_size()]
    equal = a.contiguous().view(integers) == b.contiguous().view(integers)
    return bool((equal | (a.isnan() & b.isnan())).all())


@each_dtype
@each_shape
def test_bits_are_the_references(
    shape: Shape, dtype: torch.dtype, backend: str, rng: torch.Generator
) -> None:
    given_q, given_g = inputs(shape, dtype, rng), gradients(shape, dtype, rng)
    found = forward(*given_q, shape.n)
    assert all(map(same_bits, found, forward(*given_q, shape.n, by=reference)))
    assert found[1].transpose(1, 2).is_contiguous()
    assert all(map(same_bits, backward(*given_g), backward(*given_g, by=reference)))


def test_no_heads_give_no_gradient(backend: str, rng: torch.Generator) -> None:
    shape = Shape(2, 3, 0, 8, 4, 8)
    grad_q, grad_kv, grad_k_rope = backward(*gradients(shape, torch.bfloat16, rng))
    assert (grad_q.shape, grad_kv.shape) == ((2, 0, 3, 12), (2, 3, 0))
    assert torch.equal(grad_k_rope, torch.zeros(2, 3, 4, dtype=torch.bfloat16))


@each_dtype
def test_any_number_of_threads(dtype: torch.dtype, threads: int, rng: torch.Generator) -> None:
    shape = Shape(3, 67, 6, 48, 24, 40)
    given_q, given_g = inputs(shape, dtype, rng), gradients(shape, dtype, rng)
    assert all(map(same_bits, forward(*given_q, shape.n), forward(*given_q, shape.n, by=reference)))
    assert all(map(same_bits, backward(*given_g), backward(*given_g, by=reference)))


def any_bits(x: Tensor, rng: torch.Generator) -> Tensor:
    """Of x's shape, strides and dtype: subnormal, huge, infinite and NaN among them."""
    integers = {2: torch.int16, 4: torch.int32}[x.element_size()]
    limits = torch.iinfo(integers)
    bits = torch.randint(limits.min, limits.max + 1, x.shape, generator=rng, dtype=torch.int64)
    return torch.empty_like(x).copy_(bits.to(integers).view(x.dtype))


@each_dtype
@pytest.mark.parametrize("shape", [Shape(2, 9, 4, 16, 32, 8), Shape(2, 9, 4, 3, 10, 5)], ids=str)
def test_huge_tiny_and_not_finite(
    shape: Shape, dtype: torch.dtype, backend: str, rng: torch.Generator
) -> None:
    """What is only copied keeps its bits, a NaN's too; infinity - infinity is NaN, of its own pair alone."""
    *floats, rotation = inputs(shape, dtype, rng)
    q, kv, k_rope = (any_bits(x, rng) for x in floats)
    k_rope[0, 0, 0], k_rope[0, 1, :2] = float("nan"), torch.tensor([1.0, float("inf")])
    q_found, k = forward(q, kv, k_rope, rotation, shape.n)
    wanted = forward(q, kv, k_rope, rotation, shape.n, by=reference)
    assert same_bits(q_found, wanted[0])
    assert same_bits(k, wanted[1])
    assert k[0, :, 0, shape.p : shape.p + 2].isnan().all()
    assert k[0, :, 1, shape.p : shape.p + 2].isinf().all()

    def plain(x: Tensor) -> Tensor:
        return x.unflatten(-1, (shape.n, -1))[..., : shape.p].contiguous().view(torch.uint8)

    assert torch.equal(plain(q_found), plain(q))
    assert torch.equal(k[..., : shape.p].transpose(1, 2).contiguous().view(torch.uint8), plain(kv))

    *floats, rotation = gradients(shape, dtype, rng)
    grads = [any_bits(x, rng) for x in floats]
    assert all(map(same_bits, backward(*grads, rotation), backward(*grads, rotation, by=reference)))


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Shape, torch.dtype, dict[str, Any]]:
    small = st.integers(1, 4)
    vectors = draw(st.booleans())  # whole vectors of 16 bytes, or any widths

    def width(least: int) -> int:
        return 8 * draw(st.integers(1, 5)) if vectors else draw(st.integers(least, 20))

    shape = Shape(draw(small), draw(small), draw(small), width(0), 2 * ((width(0) + 1) // 2), width(0))
    gaps = st.sampled_from([0, 8, 16]) if vectors else st.integers(0, 5)
    layout = {name: (draw(st.permutations(range(3))), draw(gaps), draw(gaps)) for name in "abc"}
    layout["columns"] = draw(st.sampled_from([1, 1, 2]))
    layout["turned"] = draw(st.booleans())
    return shape, draw(st.sampled_from(list(STORED))), layout


def laid_out(x: Tensor, order: list[int], gap: int, before: int, columns: int = 1) -> Tensor:
    """x's values with its leading dimensions in another order in memory, rows `gap` elements apart, from an
    offset of `before` on, and columns `columns` apart."""
    order = [d for d in order if d < x.dim() - 1]
    width = x.shape[-1] * columns
    memory = torch.full((*(x.shape[d] for d in order), before + width + gap), 7.0).to(x.dtype)
    back = [order.index(d) for d in range(x.dim() - 1)]
    view = memory.permute(*back, x.dim() - 1)[..., before : before + width : columns]
    return view.copy_(x)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(case=layouts())
def test_any_layout(backend: str, case: tuple[Shape, torch.dtype, dict[str, Any]]) -> None:
    """Arguments are read, and the first written, wherever they lie; what lies between stays as it is."""
    shape, dtype, layout = case
    rng = torch.Generator().manual_seed(1)
    q, kv, k_rope, rotation = inputs(shape, dtype, rng)
    grad_q, grad_k, grad_v, _ = gradients(shape, dtype, rng)
    turned = rotation.t().contiguous().t().conj() if layout["turned"] else rotation
    columns, a, b, c = (layout[name] for name in ("columns", "a", "b", "c"))

    moved = laid_out(q, *a)
    around = torch.empty(0, dtype=dtype).set_(moved.untyped_storage())
    k = ops.rope_heads_(moved, laid_out(kv, *b, columns), laid_out(k_rope, *c, columns), turned, shape.n)
    wanted = forward(q, kv, k_rope, turned, shape.n, by=reference)
    assert same_bits(moved, wanted[0])
    assert same_bits(k, wanted[1])
    assert (around == 7).sum() >= around.numel() - q.numel()

    moved = laid_out(grad_q, *a)
    results = ops.rope_heads_backward_(moved, laid_out(grad_k, *b, columns), laid_out(grad_v, *c), turned)
    expected = backward(grad_q, grad_k, grad_v, turned, by=reference)
    assert all(map(same_bits, (moved, *results), expected))


def composition(q: Tensor, kv: Tensor, k_rope: Tensor, rotation: Tensor, heads: int) -> list[Tensor]:
    """Queries, keys and values in torch's words: each pair times a matrix, repeated and concatenated."""
    cosine, sine = rotation.real, rotation.imag
    matrices = torch.stack([cosine, -sine, sine, cosine], -1).unflatten(-1, (2, 2))

    def turned(x: Tensor) -> Tensor:
        return torch.einsum("tpij,btnpj->btnpi", matrices, x.unflatten(-1, (-1, 2))).flatten(-2)

    q, kv = q.unflatten(-1, (heads, -1)), kv.unflatten(-1, (heads, -1))
    plain = q.shape[-1] - k_rope.shape[-1]
    k = torch.cat([kv[..., :plain], turned(k_rope.unsqueeze(2)).expand(-1, -1, heads, -1)], -1)
    q = torch.cat([q[..., :plain], turned(q[..., plain:])], -1)
    return [x.transpose(1, 2) for x in (q, k, kv[..., plain:])]


@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_are_autograds(
    shape: Shape, dtype: torch.dtype, backend: str, rng: torch.Generator
) -> None:
    """In FP64, within the roundings: of a rotated element three and its storage; of a sum over N heads N and
    its storage."""
    *values, rotation = inputs(shape, dtype, rng)
    *grads, _ = gradients(shape, dtype, rng)
    leaves = [x.double().requires_grad_() for x in values]
    out = composition(*leaves, rotation.to(torch.complex128), shape.n)
    exact = torch.autograd.grad(out, leaves, [x.double() for x in grads])
    grad_q, grad_kv, grad_k_rope = backward(*grads, rotation)

    def of_pairs(x: Tensor, angles: Tensor) -> Tensor:
        """|x0| |cos| + |x1| |sin| and |x0| |sin| + |x1| |cos|: what errors relative to x come to."""
        x0, x1 = x.double().abs().unflatten(-1, (-1, 2)).unbind(-1)
        cosine, sine = angles.real.double().abs(), angles.imag.double().abs()
        return torch.stack([x0 * cosine + x1 * sine, x0 * sine + x1 * cosine], -1).flatten(-2)

    stored = STORED[dtype]
    assert torch.equal(grad_kv.double(), exact[1])

    wanted = exact[0].unflatten(-1, (shape.n, -1))
    off = torch.zeros_like(wanted)
    off[..., shape.p :] = of_pairs(grads[0].transpose(1, 2)[..., shape.p :], rotation[:, None])
    assert ((grad_q.transpose(1, 2) - wanted).abs() <= (3 * U + stored) * off + 2.0**-24).all()

    parts = grads[1][..., shape.p :].double()
    sum_off = shape.n * U * parts.abs().sum(1) + stored * parts.sum(1).abs() * (1 + shape.n * U)
    off = of_pairs(sum_off, rotation) + (3 * U + stored) * of_pairs(parts.sum(1).abs() + sum_off, rotation)
    assert ((grad_k_rope - exact[2]).abs() <= off + 2.0**-24).all()


def test_forward_is_the_composition(rng: torch.Generator) -> None:
    """The reference in FP64, which the kernels are held to in FP32."""
    shape = Shape(2, 7, 3, 12, 8, 5)
    *values, rotation = inputs(shape, torch.float64, rng)
    rotation = rotation.to(torch.complex128)
    q, k, _ = composition(*values, rotation, shape.n)
    found = forward(*values, rotation, shape.n, by=reference)
    torch.testing.assert_close(found[0].unflatten(-1, (shape.n, -1)).transpose(1, 2), q)
    torch.testing.assert_close(found[1], k)


def test_turning_back_undoes_turning(backend: str, rng: torch.Generator) -> None:
    """By 90 degrees exactly."""
    shape = Shape(2, 5, 3, 16, 8, 8)
    q, kv, k_rope, _ = inputs(shape, torch.bfloat16, rng)
    rotation = torch.full((shape.t, shape.r // 2), 1j, dtype=torch.complex64)
    turned, k = forward(q, kv, k_rope, rotation, shape.n)
    x0, x1 = k_rope.unflatten(-1, (-1, 2)).unbind(-1)
    assert torch.equal(k[:, 2, :, shape.p :], torch.stack([-x1, x0], -1).flatten(-2))
    by_head = turned.unflatten(-1, (shape.n, -1)).transpose(1, 2)
    v = kv.unflatten(-1, (shape.n, -1))[..., shape.p :].transpose(1, 2)
    back, grad_kv, grad_k_rope = backward(by_head, k, v, rotation)
    assert torch.equal(back.transpose(1, 2).flatten(-2), q)
    assert torch.equal(grad_kv, kv)
    assert torch.equal(grad_k_rope, (k_rope.float() * shape.n).bfloat16())


def test_opcheck(rng: torch.Generator) -> None:
    shape = Shape(2, 5, 3, 16, 8, 24)
    operators = torch.ops.deepseek_ext
    torch.library.opcheck(operators.rope_heads_, (*inputs(shape, torch.float32, rng), shape.n))
    torch.library.opcheck(operators.rope_heads_backward_, tuple(gradients(shape, torch.bfloat16, rng)))


def wrong_arguments() -> list[Any]:
    rng = torch.Generator().manual_seed(0)
    shape = Shape(2, 5, 3, 16, 8, 24)
    q, kv, k_rope, rotation = inputs(shape, torch.float32, rng)
    grad_q, grad_k, grad_v, _ = gradients(shape, torch.float32, rng)
    op, back = "rope_heads_", "rope_heads_backward_"
    apart, shared = q.repeat_interleave(2, -1)[..., ::2], q[:, :1].expand(-1, 5, -1)
    written = "must have adjacent columns, since it is written in place; call .contiguous"
    own = "must not share memory between its elements, got strides"
    return [
        (op, (q.double(), kv, k_rope, rotation, 3), "q must be bfloat16, float16 or float32, got float64; "),
        (op, (q, kv.half(), k_rope, rotation, 3), "kv must have q's dtype float32, got float16; "),
        (op, (q, kv, k_rope.int(), rotation, 3), "k_rope must be bfloat16, float16 or float32, got int32; "),
        (op, (q, kv, k_rope, rotation, 0), "heads must be positive, got 0; "),
        (
            op,
            (q, kv, k_rope, rotation, 5),
            r"q must be \[B, T, N \* \(P \+ R\)\] with N = 5 heads, got \[2, ",
        ),
        (op, (q[0], kv, k_rope, rotation, 3), r"q must be \[B, T, N \* \(P \+ R\)\] .* got \[5, 72\]; "),
        (op, (apart, kv, k_rope, rotation, 3), f"q {written}"),
        (op, (shared, kv, k_rope, rotation, 3), rf"q {own} \[360, 0, 1\] for shape \[2, 5, 72\]; "),
        (op, (q, kv, k_rope, rotation.real, 3), "rotation must be complex64, got float32; "),
        (op, (q, kv, k_rope, rotation[1:], 3), r"rotation must be \[T, R / 2\] with T = 5, got \[4, 4\]; "),
        (
            op,
            (q, kv, k_rope, rotation.repeat(1, 4), 3),
            r"rotation must be \[T, R / 2\] with R at most q's head width 24, got \[5, 16\]; ",
        ),
        (
            op,
            (q, kv, k_rope[..., 2:], rotation, 3),
            r"k_rope must be \[B, T, R\] = \[2, 5, 8\], got \[2, 5, 6\]",
        ),
        (
            op,
            (q, kv[:, 1:], k_rope, rotation, 3),
            r"kv must be \[B, T, N \* \(P \+ V\)\] with q's B and T, N = 3 and P = 16, got \[2, 4, 120\]; ",
        ),
        (op, (q, kv[..., :45], k_rope, rotation, 3), r"kv must be \[B, T, N \* .* got \[2, 5, 45\]; "),
        (
            back,
            (grad_q[0], grad_k, grad_v, rotation),
            r"grad_q must be \[B, N, T, P \+ R\], got \[3, 5, 24\]; ",
        ),
        (
            back,
            (grad_q, grad_k.half(), grad_v, rotation),
            "grad_k must have grad_q's dtype float32, got float16",
        ),
        (
            back,
            (grad_q, grad_k, grad_v.half(), rotation),
            "grad_v must have grad_q's dtype float32, got float16",
        ),
        (back, (grad_q.mT.contiguous().mT, grad_k, grad_v, rotation), f"grad_q {written}"),
        (back, (grad_q[:, :1].expand(-1, 3, -1, -1), grad_k, grad_v, rotation), f"grad_q {own}"),
        (
            back,
            (grad_q, grad_k[..., 1:], grad_v, rotation),
            r"grad_k must have grad_q's shape \[2, 3, 5, 24\], got \[2, 3, 5, 23\]; ",
        ),
        (
            back,
            (grad_q, grad_k, grad_v[:1], rotation),
            r"grad_v must be \[B, N, T, V\] with grad_q's B, N and T, got \[1, 3, 5, 24\] for grad_q \[2, 3,",
        ),
        (back, (grad_q, grad_k, grad_v, rotation.cdouble()), "rotation must be complex64, got complex128; "),
        (
            back,
            (grad_q, grad_k, grad_v, rotation[:3]),
            r"rotation must be \[T, R / 2\] with T = 5, got \[3, 4\]",
        ),
    ]


@pytest.mark.parametrize(("op", "args", "message"), wrong_arguments(), ids=lambda x: str(x)[:30])
def test_wrong_arguments(op: str, args: tuple[Any, ...], message: str, backend: str) -> None:
    """In the same words from the kernel and from what stands in for it, which sees strides too."""

    def said(*given: Any) -> str:
        with pytest.raises(ValueError, match=f"^{op}: {message}") as error:
            getattr(ops, op)(*given)
        return str(error.value)

    with FakeTensorMode() as mode:
        fake = said(*(mode.from_tensor(x) if isinstance(x, Tensor) else x for x in args))
    assert said(*args) == fake


def test_what_requires_grad_is_refused(rng: torch.Generator) -> None:
    shape = Shape(1, 2, 2, 4, 4, 4)
    q, kv, k_rope, rotation = inputs(shape, torch.float32, rng)
    with pytest.raises(
        ValueError, match=r"^rope_heads_: kv must not require grad, .* call rope_heads_backward_"
    ):
        ops.rope_heads_(q, kv.requires_grad_(), k_rope, rotation, 2)
    with torch.no_grad():
        ops.rope_heads_(q, kv, k_rope, rotation, 2)
