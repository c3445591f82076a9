"""fp8_linear: what it computes is the composition of the operators, bit for bit; how far that is from x W^T
and its gradients in FP64 stays below what the format allows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepseek_ext import ops

DTYPES = [torch.float32, torch.bfloat16]
HALF_STEP = 2.0**-4  # of an E4M3, relative: 3 mantissa bits
SMALLEST = 2.0**-10  # half a subnormal step, in units of a tile's scale


def inputs(
    rng: torch.Generator, dtype: torch.dtype, shape: tuple[int, ...] = (3, 50, 300), n: int = 200
) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(shape, generator=rng).to(dtype).requires_grad_()
    weight = (torch.randn(n, shape[-1], generator=rng) * 0.05).requires_grad_()
    grad = (torch.randn(*shape[:-1], n, generator=rng) * 1e-3).to(dtype)
    return x, weight, grad


def rounding(x: Tensor, scales: Tensor) -> Tensor:
    """How far quantisation moves each element of x at most; scales already have x's shape."""
    return HALF_STEP * x.abs() + SMALLEST * scales


def tile_scales(x: Tensor) -> Tensor:
    return ops.quantize_tiles(x)[1].double().repeat_interleave(128, 1)[:, : x.shape[1]]


def block_scales(w: Tensor) -> Tensor:
    scales = ops.quantize_blocks(w)[1].double()
    return scales.repeat_interleave(128, 0)[: w.shape[0]].repeat_interleave(128, 1)[:, : w.shape[1]]


def product_bound(a: Tensor, da: Tensor, b: Tensor, db: Tensor, k: int) -> Tensor:
    """|fl(A'B') - AB| for A' within da of A and B' within db of B: the quantisation, then FP32 sums."""
    a, b = a.abs(), b.abs()
    quantised = a @ db + da @ b + da @ db
    return quantised + (128 + k / 128 + 4) * 2.0**-24 * ((a + da) @ (b + db))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("power_of_2", [False, True])
def test_is_the_composition_of_the_operators(
    backend: str, dtype: torch.dtype, power_of_2: bool, rng: torch.Generator
) -> None:
    x, weight, grad = inputs(rng, dtype)
    y = ops.fp8_linear(x, weight, power_of_2=power_of_2)
    y.backward(grad)
    with torch.no_grad():
        tiles = ops.quantize_tiles(x.reshape(-1, 300), power_of_2=power_of_2)
        blocks = ops.quantize_blocks(weight)
        g, g_scales, g_t, g_scales_t = ops.quantize_tiles_both(grad.reshape(-1, 200))
        expected = ops.gemm(*tiles, *blocks, out_dtype=dtype).view(3, 50, 200)
        dgrad = ops.gemm(g, g_scales, blocks[0].t(), blocks[1].t(), out_dtype=dtype).view_as(x)
        wgrad = ops.gemm(g_t, g_scales_t, *ops.retile(*tiles), out_dtype=torch.float32)
    assert (y.dtype, x.grad.dtype, weight.grad.dtype) == (dtype, dtype, torch.float32)
    assert torch.equal(y, expected)
    assert torch.equal(x.grad, dgrad)
    assert torch.equal(weight.grad, wgrad)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_distance_from_fp64(dtype: torch.dtype, rng: torch.Generator) -> None:
    x, weight, grad = inputs(rng, dtype, (150, 300))
    y = ops.fp8_linear(x, weight)
    y.backward(grad)
    last = 0.0 if dtype == torch.float32 else 2.0**-8  # rounding to the output's dtype
    xd, wd, gd = x.detach().double(), weight.detach().double(), grad.double()
    dx, dw = rounding(xd, tile_scales(x.detach())), rounding(wd, block_scales(weight.detach()))
    dg = rounding(gd, tile_scales(grad))

    def check(got: Tensor, exact: Tensor, bound: Tensor) -> None:
        error = (got.double() - exact).abs()
        assert (error <= bound + last * (exact.abs() + bound)).all()
        assert error.max() > bound.max() * 1e-3, "the bound has something to say"

    check(y.detach(), xd @ wd.t(), product_bound(xd, dx, wd.t(), dw.t(), 300))
    check(x.grad, gd @ wd, product_bound(gd, dg, wd, dw, 200))
    # For the weight gradient both operands have tiles along the 150 rows, and x is quantised a second time.
    dg_t = rounding(
        gd, ops.quantize_tiles_transposed(grad)[1].double().repeat_interleave(128, 1)[:, :150].t()
    )
    twice = ops.retile(*ops.quantize_tiles(x.detach()))[1].double().repeat_interleave(128, 1)[:, :150].t()
    dx_t = dx + rounding(xd.abs() + dx, twice)
    last = 0.0
    check(weight.grad, gd.t() @ xd, product_bound(gd.t(), dg_t.t(), xd, dx_t, 150))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_codes_are_used_and_the_weight_still_gets_its_gradient(
    dtype: torch.dtype, rng: torch.Generator
) -> None:
    x, weight, grad = inputs(rng, dtype)
    ops.fp8_linear(x, weight).backward(grad)
    expected = [x.grad, weight.grad]
    other = torch.zeros_like(weight, requires_grad=True)
    x.grad = None
    ops.fp8_linear(x, other, codes=ops.quantize_blocks(weight.detach())).backward(grad)
    assert torch.equal(x.grad, expected[0])
    assert torch.equal(other.grad, expected[1])


def test_gradient_has_the_weights_dtype(rng: torch.Generator) -> None:
    x, weight, grad = inputs(rng, torch.bfloat16)
    weight = weight.detach().bfloat16().requires_grad_()
    ops.fp8_linear(x, weight).backward(grad)
    assert weight.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("needs", [(True, False), (False, True), (True, True)], ids=str)
def test_computes_only_what_is_needed(needs: tuple[bool, bool], rng: torch.Generator) -> None:
    x, weight, grad = inputs(rng, torch.float32)
    ops.fp8_linear(x, weight).backward(grad)
    expected = [x.grad, weight.grad]
    x, weight = (t.detach().requires_grad_(n) for t, n in zip((x, weight), needs, strict=True))
    y = ops.fp8_linear(x, weight)
    with torch.profiler.profile() as profile:
        y.backward(grad)
    calls = {event.name.removeprefix("deepseek_ext::") for event in profile.events()}
    assert ("retile" in calls) == needs[1]
    assert ("quantize_tiles_both" in calls) == (needs == (True, True))
    assert sum(event.name == "deepseek_ext::gemm" for event in profile.events()) == sum(needs)
    for tensor, need, gradient in zip((x, weight), needs, expected, strict=True):
        assert (tensor.grad is not None) == need
        if need:
            assert torch.equal(tensor.grad, gradient)


def test_saves_only_tiles_and_codes(rng: torch.Generator) -> None:
    x, weight, _ = inputs(rng, torch.bfloat16)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.fp8_linear(x, weight, codes=ops.quantize_blocks(weight.detach()))
    shapes = sorted((tuple(t.shape), str(t.dtype)) for t in saved)
    fp8, fp32 = "torch.float8_e4m3fn", "torch.float32"
    assert shapes == sorted([((150, 300), fp8), ((150, 3), fp32), ((200, 300), fp8), ((2, 3), fp32)])


def test_no_gradient_no_graph(rng: torch.Generator) -> None:
    x, weight, _ = inputs(rng, torch.float32)
    with torch.no_grad():
        assert not ops.fp8_linear(x, weight).requires_grad
    assert not ops.fp8_linear(x.detach(), weight.detach()).requires_grad


@pytest.mark.parametrize("shape", [(300,), (0, 300), (2, 0, 300), (1, 1, 300)], ids=str)
def test_leading_dimensions(shape: tuple[int, ...], rng: torch.Generator) -> None:
    x, weight, grad = inputs(rng, torch.float32, shape)
    y = ops.fp8_linear(x, weight)
    assert y.shape == (*shape[:-1], 200)
    y.backward(grad)
    assert x.grad.shape == x.shape
    if x.numel() == 0:
        assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_strided_input(rng: torch.Generator) -> None:
    x, weight, grad = inputs(rng, torch.float32, (40, 2, 300))
    plain = ops.fp8_linear(x, weight)
    turned = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    y = ops.fp8_linear(turned, weight)
    assert torch.equal(y, plain)
    y.backward(grad.transpose(0, 1).contiguous().transpose(0, 1))
    plain.backward(grad)
    assert torch.equal(turned.grad, x.grad)


def test_opcheck(rng: torch.Generator) -> None:
    """Without test_schema, which compares inputs, and test_aot_dispatch_dynamic, which sums outputs: torch
    does neither in FP8. The next test stands for the latter."""
    for dtype in DTYPES:
        x, weight, _ = inputs(rng, dtype, (5, 300), 20)
        arguments = (x, weight, *ops.quantize_blocks(weight.detach()), False)
        tests = ("test_autograd_registration", "test_faketensor")
        torch.library.opcheck(torch.ops.deepseek_ext.fp8_linear.default, arguments, test_utils=tests)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("with_codes", [False, True])
def test_traces_with_dynamic_shapes(dtype: torch.dtype, with_codes: bool, rng: torch.Generator) -> None:
    def layer(x: Tensor, weight: Tensor, codes: tuple[Tensor, Tensor] | None) -> Tensor:
        return ops.fp8_linear(x, weight, codes=codes)

    traced = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (5, 9):
        x, weight, grad = inputs(rng, dtype, (2, rows, 300))
        codes = ops.quantize_blocks(weight.detach()) if with_codes else None
        results = []
        for run in (layer, traced):
            y = run(x, weight, codes)
            results.append((y.detach(), *torch.autograd.grad(y, (x, weight), grad)))
        for eager, compiled in zip(*results, strict=True):
            assert torch.equal(eager, compiled)


@pytest.mark.slow
def test_compiles_to_the_same_bits(rng: torch.Generator) -> None:
    """With what surrounds it; quantisation of the weight is part of the graph, which must not break."""

    def layer(x: Tensor, weight: Tensor) -> Tensor:
        return ops.fp8_linear(x * 2, weight) + 1

    results = []
    for run in (layer, torch.compile(layer, fullgraph=True)):
        x, weight, grad = inputs(rng.manual_seed(1), torch.float32)
        y = run(x, weight)
        y.backward(grad)
        results.append((y.detach(), x.grad, weight.grad))
    for eager, compiled in zip(*results, strict=True):
        assert torch.equal(eager, compiled)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda x, w, c: (x.half(), w, c),
            "fp8_linear: x must be bfloat16 or float32, got float16; convert it",
        ),
        (lambda x, w, c: (x, w.double(), c), "fp8_linear: weight must be bfloat16 or float32, got float64"),
        (lambda x, w, c: (x, w[0], c), "fp8_linear: weight must be [N, K], got shape [300]"),
        (
            lambda x, w, c: (x[..., 1:], w, c),
            "x must be [..., K], K = 300 as in weight, got shape [3, 50, 299]",
        ),
        (
            lambda x, w, c: (x, w, (c[0][1:], c[1])),
            "codes of weight must be float8_e4m3fn of its shape [200, 300], got float8_e4m3fn [199, 300]",
        ),
        (
            lambda x, w, c: (x, w, (c[0], c[1][1:])),
            "fp8_linear: scales of weight must be float32 [2, 3], got",
        ),
    ],
    ids=["x dtype", "weight dtype", "weight shape", "K", "codes", "scales"],
)
def test_wrong_arguments(change, said: str, rng: torch.Generator) -> None:
    x, weight, _ = inputs(rng, torch.float32)
    x, weight, codes = change(x.detach(), weight.detach(), ops.quantize_blocks(weight.detach()))
    with pytest.raises(ValueError) as error:  # noqa: PT011  the text is checked below
        ops.fp8_linear(x, weight, codes=codes)
    assert said in str(error.value)
