"""The swiglu family: against FP64 within derived bounds, and the same bits everywhere.

The bounds count roundings, each u = 2^-24 of the value it makes. The sigmoid is off by 1.7 ulp at most
(test_exp.py), which is 3.4 u. Hence, before the last rounding to the result's dtype,

    silu = gate * s                              4.4 u |silu|
    output = silu * up * weight                  6.4 u |output|
    slope = fma(silu, s(-gate), s)               8.8 u (s + |silu| s(-gate)): 4.4 + 3.4, and 1 more
    grad_gate = grad * weight * up * slope      11.8 u |grad weight up| (s + |silu| s(-gate))
    grad_up = grad * weight * silu               6.4 u |grad_up|
    grad_weight = sum of grad * (silu * up)     (5.4 + ceil(I/16) + 4) u sum |grad silu up|

with one rounding for each of the ceil(I/16) steps of a lane and of the 4 steps that add 16 lanes; on CUDA
there are no more of them (csrc/cuda/reduce.cuh). Where an
intermediate result is subnormal, each rounding adds at most half of 2^-149, times what it is multiplied by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import backends
import pytest
import torch
from cpu_tiers import CPU_TIERS
from quantize_inputs import FLOATS, adversarial, assert_same_bits
from torch import Tensor
from torch._subclasses import FakeTensorMode

from deepseek_ext import ops
from deepseek_ext.reference import quantize as quantize_reference
from deepseek_ext.reference import swiglu as reference

OPS = torch.ops.deepseek_ext
U = 2.0**-24
SECOND_ORDER = 1 + 2.0**-16
HALF_ULP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 0.0}
SMALLEST = {torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24, torch.float32: 2.0**-149}
# Rows x I: single elements, around a chunk of 32, whole tiles, tiles of gate_up that span gate and up, more
# than one batch of tiles, empty either way.
SHAPES = [(1, 1), (3, 31), (5, 33), (33, 200), (4, 128), (7, 64), (20, 256), (2, 2304), (0, 8), (3, 0)]


def within(got: Tensor, exact: Tensor, error: Tensor, what: str) -> None:
    """|got - exact| <= error and the rounding of got's dtype, element by element."""
    got64 = got.double()
    bound = error * SECOND_ORDER + HALF_ULP[got.dtype] * (exact.abs() + error) + SMALLEST[got.dtype] / 2
    wrong = ~((got64 - exact).abs() <= bound)
    if wrong.any():
        at = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{what} at {at}: {got64[at].item()!r} for {exact[at].item()!r}, allowed {bound[at].item():.3g}"
        )


class Exact:
    """Output and gradients in FP64 through the reference, with the errors that the operators are allowed."""

    def __init__(self, grad: Tensor, gate_up: Tensor, weights: Tensor | None) -> None:
        leaf = gate_up.double().requires_grad_()
        w = (torch.ones(len(gate_up)) if weights is None else weights).double().requires_grad_()
        self.output = reference.swiglu(leaf, w)
        self.grad_gate_up, self.grad_weights = torch.autograd.grad(self.output, (leaf, w), grad.double())
        self.output = self.output.detach()

        gate, up = gate_up.double().chunk(2, dim=1)
        g, w = grad.double(), w.detach()[:, None]
        s, silu = torch.sigmoid(gate), gate * torch.sigmoid(gate)
        slope = s + silu.abs() * torch.sigmoid(-gate)
        # A subnormal sigmoid is off by 1.7 * 2^-149, which gate, up, grad and weight magnify.
        tiny = 2.0**-147 * (1 + gate.abs()) * (1 + up.abs()) * (1 + w.abs())
        self.output_error = 6.4 * U * self.output.abs() + tiny
        tiny = tiny * (1 + g.abs())
        self.grad_gate_up_error = torch.cat(
            [11.8 * U * (g * w * up).abs() * slope + tiny, 6.4 * U * (g * w * silu).abs() + tiny], dim=1
        )
        roundings = 5.4 + -(-gate.shape[1] // 16) + 4
        self.grad_weights_error = roundings * U * (g * silu * up).abs().sum(1) + tiny.sum(1)


def example(
    rng: torch.Generator, dtype: torch.dtype = torch.float32, shape: tuple[int, int] = (33, 200)
) -> tuple[Tensor, Tensor, Tensor]:
    """grad [M, I], gate_up [M, 2I] and weights [M]."""
    rows, width = shape
    gate_up = torch.randn(rows, 2 * width, generator=rng) * 4
    if width >= 9:
        gate_up[:1, :9] = torch.tensor([0.0, -0.0, 30, -30, 88, -88, 1e-20, -1.2784645, -100])
    return (
        torch.randn(rows, width, generator=rng).to(dtype),
        gate_up.to(dtype),
        torch.rand(rows, generator=rng),
    )


@pytest.fixture(params=[False, True], ids=["unweighted", "weighted"])
def weighted(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_swiglu(backend: str, dtype: torch.dtype, weighted: bool, rng: torch.Generator) -> None:
    for shape in SHAPES:
        grad, gate_up, weights = example(rng, dtype, shape)
        given = weights if weighted else None
        exact = Exact(grad, gate_up, given)
        out = ops.swiglu(gate_up, given)
        assert out.dtype == dtype
        within(out, exact.output, exact.output_error, f"output of {shape}")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gradient(backend: str, dtype: torch.dtype, weighted: bool, rng: torch.Generator) -> None:
    for shape in SHAPES:
        grad, gate_up, weights = example(rng, dtype, shape)
        given = weights if weighted else None
        exact = Exact(grad, gate_up, given)
        grad_gate_up, grad_weights = ops.swiglu_gradient(grad, gate_up, given)
        assert grad_gate_up.dtype == dtype
        within(grad_gate_up, exact.grad_gate_up, exact.grad_gate_up_error, f"gradient of {shape}")
        if weighted:
            assert grad_weights is not None
            assert grad_weights.dtype == torch.float32
            within(grad_weights, exact.grad_weights, exact.grad_weights_error, f"weights of {shape}")
        else:
            assert grad_weights is None


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_backward(backend: str, dtype: torch.dtype, weighted: bool, rng: torch.Generator) -> None:
    for shape in SHAPES:
        grad, gate_up, weights = example(rng, dtype, shape)
        given = weights if weighted else None
        codes, scales = ops.quantize_tiles(gate_up)
        exact = Exact(grad, ops.dequantize_tiles(codes, scales), given)
        grad_gate_up, grad_weights, output = ops.swiglu_backward(grad, codes, scales, given)
        assert (grad_gate_up.dtype, output.dtype) == (torch.bfloat16, torch.bfloat16)
        within(grad_gate_up, exact.grad_gate_up, exact.grad_gate_up_error, f"gradient of {shape}")
        within(output, exact.output, exact.output_error, f"output of {shape}")
        if weighted:
            assert grad_weights is not None
            assert grad_weights.dtype == torch.float32
            within(grad_weights, exact.grad_weights, exact.grad_weights_error, f"weights of {shape}")
        else:
            assert grad_weights is None


def test_autograd_is_the_gradient(weighted: bool, rng: torch.Generator) -> None:
    grad, gate_up, weights = example(rng, torch.bfloat16)
    leaves = (gate_up.requires_grad_(), weights.requires_grad_()) if weighted else (gate_up.requires_grad_(),)
    got = torch.autograd.grad(ops.swiglu(*leaves), leaves, grad)
    wanted = ops.swiglu_gradient(grad, *(leaf.detach() for leaf in leaves))
    assert_same_bits(got, tuple(t for t in wanted if t is not None))


def test_reference_gradient_is_the_derivative_of_the_reference(weighted: bool, rng: torch.Generator) -> None:
    grad, gate_up, weights = (t.double() for t in example(rng))
    given = weights if weighted else None
    exact = Exact(grad, gate_up, given)
    grad_gate_up, grad_weights, output = reference.swiglu_gradient(grad, gate_up, given)
    torch.testing.assert_close(grad_gate_up, exact.grad_gate_up, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(output, exact.output, rtol=1e-12, atol=0)
    torch.testing.assert_close(grad_weights, exact.grad_weights, rtol=1e-12, atol=1e-12)


def results(grad: Tensor, gate_up: Tensor, weights: Tensor | None) -> dict[str, tuple[Tensor, ...]]:
    """Every operator of the family on one set of arguments; what is None is left out."""
    quantised = ops.swiglu_quantize(gate_up, weights, cache=True)
    everything = {
        "swiglu": (ops.swiglu(gate_up, weights),),
        "swiglu_quantize": quantised,
        "swiglu_quantize, powers of two": ops.swiglu_quantize(gate_up, weights, power_of_2=True),
        "swiglu_gradient": ops.swiglu_gradient(grad, gate_up, weights),
        "swiglu_backward": ops.swiglu_backward(grad, *quantised[2:], weights),
    }
    return {name: tuple(t for t in tensors if t is not None) for name, tensors in everything.items()}


def assert_same_results(got: dict[str, tuple[Tensor, ...]], wanted: dict[str, tuple[Tensor, ...]]) -> None:
    for name, tensors in wanted.items():
        try:
            assert_same_bits(got[name], tensors)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


Case = tuple[tuple[Tensor, Tensor, Tensor | None], dict[str, tuple[Tensor, ...]]]


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    """Arguments of every kind of number, NaN and infinities included, and the generic tier's results."""
    rng = torch.Generator().manual_seed(4)
    made: list[Case] = []
    with backends.on_cpu(), ops.using_cpu_capability("generic"):
        for rows, width in SHAPES:
            for dtype in FLOATS:
                arguments = (
                    adversarial(rng, rows, width, dtype),
                    adversarial(rng, rows, 2 * width, dtype),
                    None if width == 64 else adversarial(rng, rows, 1)[:, 0],
                )
                made.append((arguments, results(*arguments)))
    return made


def test_every_tier_and_device_gives_the_same_bits(backend: str, cases: list[Case]) -> None:
    """But for a row's sum, which on CUDA has an order of its own (csrc/cuda/reduce.cuh)."""
    for arguments, wanted in cases:
        got = results(*arguments)
        if backend not in CPU_TIERS:
            got, wanted = without_sums(got), without_sums(wanted)
        assert_same_results(got, wanted)


def without_sums(given: dict[str, tuple[Tensor, ...]]) -> dict[str, tuple[Tensor, ...]]:
    return {
        name: tuple(t for t in tensors if t.dim() == 2 or "quantize" in name)
        for name, tensors in given.items()
    }


def test_bits_do_not_depend_on_threads(cpu_tier: str, rng: torch.Generator) -> None:
    before = torch.get_num_threads()
    arguments = example(rng, torch.bfloat16, (300, 456))
    try:
        torch.set_num_threads(1)
        one = results(*arguments)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert_same_results(results(*arguments), one)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("power_of_2", [False, True])
def test_quantize_is_swiglu_then_quantize_tiles(
    backend: str, cases: list[Case], power_of_2: bool, rng: torch.Generator
) -> None:
    """The product quantised from FP32, and the tiles of gate_up: bit for bit."""
    for (_, gate_up, weights), _ in cases:
        got = ops.swiglu_quantize(gate_up, weights, power_of_2=power_of_2, cache=True)
        product = quantize_reference.quantize_tiles(
            ops.swiglu(gate_up.float(), weights), power_of_2=power_of_2
        )
        cache = quantize_reference.quantize_tiles(gate_up, power_of_2=power_of_2)
        assert_same_bits(got, (*product, *cache))
        without = ops.swiglu_quantize(gate_up, weights, power_of_2=power_of_2)
        assert len(without) == 2
        assert_same_bits(without, product)


def test_backward_is_the_gradient_at_the_dequantised_tiles(backend: str, cases: list[Case]) -> None:
    """Any codes and scales, not only what swiglu_quantize makes."""
    rng = torch.Generator().manual_seed(5)
    for rows, width in SHAPES:
        codes = torch.randint(0, 256, (rows, 2 * width), generator=rng, dtype=torch.uint8)
        codes = codes.view(torch.float8_e4m3fn)
        scales = adversarial(rng, rows, -(-2 * width // 128)).abs()
        grad, weights = torch.randn(rows, width, generator=rng), torch.randn(rows, generator=rng)
        grad_gate_up, grad_weights, output = ops.swiglu_backward(grad, codes, scales, weights)
        gate_up = ops.dequantize_tiles(codes, scales)
        wanted = ops.swiglu_gradient(grad, gate_up, weights)
        assert wanted[1] is not None
        assert grad_weights is not None
        assert_same_bits(
            (grad_gate_up, grad_weights, output),
            (wanted[0].bfloat16(), wanted[1], ops.swiglu(gate_up, weights).bfloat16()),
        )


def test_extremes(backend: str) -> None:
    """silu goes to 0 on the far left without becoming NaN; NaN stays in its place; too large is infinite."""
    gate_up = torch.tensor([[-1e30, -200.0, 200.0, torch.nan, -100.0, 1e30, 1.0, 2.0, 3.0, 4.0, 1.0, 1e30]])
    out = ops.swiglu(gate_up)[0].tolist()
    assert out[:3] == [0, 0, 600]
    assert out[3] != out[3]
    assert out[4] == pytest.approx(-100 * 3.720076e-44, abs=200 * 2.0**-149)  # the sigmoid is subnormal
    assert out[5] == float("inf")
    assert ops.swiglu(gate_up.bfloat16())[0, 5] == float("inf")
    codes, _ = ops.swiglu_quantize(gate_up)
    assert codes.view(torch.uint8)[0, 3] == codes.view(torch.uint8)[0, 5] == 0x7F


def test_a_nan_poisons_its_own_row_and_column_only(backend: str, rng: torch.Generator) -> None:
    grad, gate_up, weights = example(rng, torch.bfloat16)
    clean = results(grad, gate_up, weights)
    gate_up[5, 7] = torch.nan
    dirty = results(grad, gate_up, weights)
    for name in ("swiglu", "swiglu_gradient"):
        for before, after in zip(clean[name], dirty[name], strict=True):
            assert not before.isnan().any()
            where = after.isnan().nonzero().tolist()
            if after.dim() == 1:
                assert where == [[5]]
            else:
                assert where == ([[5, 7]] if name == "swiglu" else [[5, 7], [5, 207]])
            assert_same_bits(torch.where(after.isnan(), before, after), before)


def test_beyond_the_cache(cpu_tier: str, rng: torch.Generator) -> None:
    """Large enough for non-temporal stores wherever the last-level cache is below 40 MB."""
    if cpu_tier == "generic":
        pytest.skip("the generic tier has no such stores")
    for dtype, rows in ((torch.bfloat16, 256), (torch.float32, 128)):
        arguments = example(rng, dtype, (rows, 256))
        small = results(*arguments)
        wanted = {name: tuple(repeated(t) for t in tensors) for name, tensors in small.items()}
        assert_same_results(results(*(repeated(t) for t in arguments)), wanted)


def repeated(x: Tensor) -> Tensor:
    """160 times the rows."""
    return torch.cat([x.view(torch.uint8)] * 160).view(x.dtype)


def test_strides(backend: str, rng: torch.Generator) -> None:
    """Rows are read where they lie, or copied where their elements are apart."""
    wide = torch.randn(64, 600, generator=rng).bfloat16()
    many = torch.rand(640, generator=rng)
    views = {
        "columns of a wider matrix": wide[:, 18:418],
        "every other row": wide[::2],
        "elements apart": wide[:, ::2],
        "transposed": wide.T,
        "one row, expanded": wide[:1].expand(5, -1),
        "two columns": wide[:, 3:5],
    }
    for what, view in views.items():
        rows, width = view.shape[0], view.shape[1] // 2
        grad, weights = view[:, width:], many[:: 640 // rows][:rows]
        try:
            assert_same_results(
                results(grad, view, weights),
                results(grad.contiguous(), view.contiguous(), weights.contiguous()),
            )
        except AssertionError as error:
            raise AssertionError(f"{what}: {error}") from None


def test_strides_of_codes_and_scales(backend: str, rng: torch.Generator) -> None:
    grad, gate_up, weights = example(rng, torch.bfloat16)
    codes, scales = ops.quantize_tiles(gate_up)
    wanted = ops.swiglu_backward(grad, codes, scales, weights)
    wide = torch.zeros(33, 600, dtype=torch.uint8)
    wide[:, 100:500] = codes.view(torch.uint8)
    view = wide[:, 100:500].view(torch.float8_e4m3fn)
    m_major = scales.T.contiguous().T  # as CUDA lays them out
    assert_same_bits(ops.swiglu_backward(grad, view, m_major, weights), wanted)
    apart = codes.T.contiguous().T
    assert_same_bits(ops.swiglu_backward(grad, apart, scales, weights), wanted)


def test_same_bits_with_denormals_flushed(cpu_tier: str, rng: torch.Generator) -> None:
    grad, gate_up, weights = example(rng)
    arguments = (grad * 2.0**-130, gate_up.index_fill(0, torch.tensor([3, 4]), -95.0) * 2.0**-3, weights)
    arguments[1][5:20] *= 2.0**-128
    wanted = results(*arguments)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    try:
        got = results(*arguments)
    finally:
        torch.set_flush_denormal(False)
    assert_same_results(got, wanted)


def test_opcheck(rng: torch.Generator) -> None:
    grad, gate_up, weights = example(rng, torch.bfloat16)
    leaves = gate_up.clone().requires_grad_(), weights.clone().requires_grad_()
    torch.library.opcheck(OPS.swiglu.default, leaves)
    torch.library.opcheck(OPS.swiglu.default, leaves[:1])
    torch.library.opcheck(OPS.swiglu_gradient.default, (grad, gate_up, weights))
    torch.library.opcheck(OPS.swiglu_gradient.default, (grad, gate_up))
    torch.library.opcheck(OPS.swiglu_quantize.default, (gate_up, weights))
    _, _, codes, scales = ops.swiglu_quantize(gate_up, weights, cache=True)
    torch.library.opcheck(OPS.swiglu_quantize.default, (gate_up, weights), {"cache": True})
    # test_schema compares inputs before and after, which torch cannot do for FP8 tensors.
    checks = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(OPS.swiglu_backward.default, (grad, codes, scales, weights), test_utils=checks)
    torch.library.opcheck(OPS.swiglu_backward.default, (grad, codes, scales), test_utils=checks)


X, W, G = torch.zeros(4, 256), torch.zeros(4), torch.zeros(4, 128)
C, S = torch.zeros(4, 256, dtype=torch.float8_e4m3fn), torch.ones(4, 2)
FLOAT_DTYPE = r"must be bfloat16, float16 or float32, got {}; convert it with .float\(\)"
ERRORS: list[tuple[Callable[[], Any], str]] = [
    (lambda: ops.swiglu(X.int()), "swiglu: gate_up " + FLOAT_DTYPE.format("int32")),
    (lambda: ops.swiglu(X.double()), "swiglu: gate_up " + FLOAT_DTYPE.format("float64")),
    (
        lambda: ops.swiglu(X[:, 1:]),
        r"swiglu: gate_up must be \[M, 2I\], gate first, then up, got the odd width 255; give",
    ),
    (lambda: ops.swiglu(X[0]), r"gate first, then up, got \[256\]"),
    (
        lambda: ops.swiglu(X, W.bfloat16()),
        r"swiglu: weights must be float32, got bfloat16; convert it with .float\(\)",
    ),
    (
        lambda: ops.swiglu(X, W[:3]),
        r"swiglu: weights must be \[M\] = \[4\], one for each row, got \[3\]; pass one number",
    ),
    (lambda: ops.swiglu(X, W[:, None]), r"one for each row, got \[4, 1\]"),
    (lambda: ops.swiglu_quantize(X.double()), "swiglu_quantize: gate_up " + FLOAT_DTYPE.format("float64")),
    (lambda: ops.swiglu_quantize(X, W.double()), "swiglu_quantize: weights must be float32, got float64"),
    (lambda: ops.swiglu_gradient(G, X[:, 1:]), r"swiglu_gradient: gate_up must be \[M, 2I\]"),
    (
        lambda: ops.swiglu_gradient(G.half(), X),
        r"swiglu_gradient: grad must have gate_up's dtype float32, got float16; convert it with .to\(\)",
    ),
    (
        lambda: ops.swiglu_gradient(X, X),
        r"swiglu_gradient: grad must be \[M, I\] = \[4, 128\], got \[4, 256\]; pass the gradient",
    ),
    (lambda: ops.swiglu_gradient(G, X, W[1:]), r"swiglu_gradient: weights must be \[M\] = \[4\]"),
    (
        lambda: ops.swiglu_backward(G, X, S),
        "swiglu_backward: gate_up_codes must be float8_e4m3fn, got float32; make them with swiglu_quantize",
    ),
    (
        lambda: ops.swiglu_backward(G, C[0], S),
        r"gate_up_codes must be \[M, 2I\], got \[256\]; pass the codes",
    ),
    (
        lambda: ops.swiglu_backward(G, C, S.double()),
        "gate_up_scales must be float32, got float64; pass the scales",
    ),
    (
        lambda: ops.swiglu_backward(G, C, S[:, :1]),
        r"\[M, ceil\(2I/128\)\] = \[4, 2\], got \[4, 1\]; pass the scales",
    ),
    (lambda: ops.swiglu_backward(G.int(), C, S), "swiglu_backward: grad " + FLOAT_DTYPE.format("int32")),
    (lambda: ops.swiglu_backward(X, C, S), r"grad must be \[M, I\] = \[4, 128\], got \[4, 256\]"),
    (lambda: ops.swiglu_backward(G, C, S, W[1:]), r"swiglu_backward: weights must be \[M\] = \[4\]"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_argument_errors_are_the_same_from_real_and_fake(
    call: Callable[[], Any], message: str, backend: str
) -> None:
    with pytest.raises(ValueError, match=message) as real:
        call()
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(ValueError, match=message) as fake:
        call()
    assert str(real.value) == str(fake.value)
