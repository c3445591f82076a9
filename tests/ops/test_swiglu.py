"""swiglu and its quantised forms against FP64 in numpy, element by element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from deepseek_ext import ops
from deepseek_ext.reference import swiglu as reference

OPS = torch.ops.deepseek_ext
# Relative error of an FP32 result: exp, 1 + e, division and up to four products, each within 2 ulp of 2^-23.
FP32_ERROR = 14 * 2.0**-23
HALF_ULP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
SMALLEST = {torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24, torch.float32: 2.0**-149}
Array = npt.NDArray[np.float64]


def sigmoid(x: Array) -> Array:
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


def by_hand(gate_up: Tensor, weights: Tensor | None) -> Array:
    gate, up = np.split(gate_up.double().numpy(), 2, axis=1)
    out = gate * sigmoid(gate) * up
    return out if weights is None else out * weights.double().numpy()[:, None]


def gradients_by_hand(grad: Tensor, gate_up: Tensor, weights: Tensor) -> tuple[Array, Array, Array, Array]:
    """Gradients of gate_up and weights, and the magnitudes that their rounding errors scale with."""
    gate, up = np.split(gate_up.double().numpy(), 2, axis=1)
    g, w, s = grad.double().numpy(), weights.double().numpy()[:, None], sigmoid(gate)
    slope, slope_size = s + gate * s * (1 - s), s + np.abs(gate) * s * (1 - s)
    product = gate * s * up
    return (
        np.concatenate([g * w * up * slope, g * w * gate * s], axis=1),
        (g * product).sum(1),
        np.concatenate([np.abs(g * w * up) * slope_size, np.abs(g * w * gate * s)], axis=1),
        np.abs(g * product).sum(1),
    )


def close(actual: Tensor, expected: Array, relative: float, magnitude: Array | None = None) -> None:
    size = np.abs(expected if magnitude is None else magnitude)
    bound = size * (relative + HALF_ULP[actual.dtype]) * (1 + 2**-8) + SMALLEST[actual.dtype]
    error = np.abs(actual.double().numpy() - expected)
    worst = np.unravel_index(np.argmax(error - bound), error.shape)
    assert error[worst] <= bound[worst], f"at {worst}: {actual[worst]} for {expected[worst]}, {bound[worst]=}"


def example(
    rng: torch.Generator, dtype: torch.dtype, rows: int = 33, width: int = 200
) -> tuple[Tensor, Tensor]:
    gate_up = torch.randn(rows, 2 * width, generator=rng) * 4
    gate_up[0, :8] = torch.tensor([0.0, -0.0, 30, -30, 88, -88, 1e-20, -1e-3])
    return gate_up.to(dtype), torch.rand(rows, generator=rng)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("weighted", [False, True])
def test_swiglu(dtype: torch.dtype, weighted: bool, rng: torch.Generator) -> None:
    gate_up, weights = example(rng, dtype)
    out = ops.swiglu(gate_up, weights if weighted else None)
    assert out.dtype == dtype
    close(out, by_hand(gate_up, weights if weighted else None), FP32_ERROR)


def test_extremes() -> None:
    """silu goes to 0 on the far left without becoming NaN; NaN stays in its place."""
    gate_up = torch.tensor([[-1e30, -200.0, 200.0, torch.nan, 1.0, 2.0, 3.0, 4.0]])
    out = ops.swiglu(gate_up)
    assert out[0, :3].tolist() == [0, 0, 600]
    assert out.isnan().tolist() == [[False, False, False, True]]


@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck(weighted: bool, rng: torch.Generator) -> None:
    gate_up = torch.randn(5, 6, generator=rng, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(5, generator=rng, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.swiglu, (gate_up, weights) if weighted else (gate_up,))


def test_gradient_of_bf16(rng: torch.Generator) -> None:
    gate_up, weights = example(rng, torch.bfloat16)
    grad = torch.randn(33, 200, generator=rng).bfloat16()
    gate_up.requires_grad_()
    weights.requires_grad_()
    ops.swiglu(gate_up, weights).backward(grad)
    assert gate_up.grad is not None
    assert weights.grad is not None
    wanted = gradients_by_hand(grad, gate_up.detach(), weights.detach())
    assert (gate_up.grad.dtype, weights.grad.dtype) == (torch.bfloat16, torch.float32)
    close(gate_up.grad, wanted[0], FP32_ERROR, wanted[2])
    close(weights.grad, wanted[1], FP32_ERROR + 200 * 2**-24, wanted[3])


@pytest.mark.parametrize("power_of_2", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("width", [64, 128, 200])  # a tile of gate_up may span gate and up
def test_swiglu_quantize(power_of_2: bool, weighted: bool, width: int, rng: torch.Generator) -> None:
    gate_up, weights = example(rng, torch.bfloat16, width=width)
    given = weights if weighted else None
    codes, scales, cache_codes, cache_scales = ops.swiglu_quantize(
        gate_up, given, power_of_2=power_of_2, cache=True
    )
    for actual, expected in zip(
        (codes, scales, cache_codes, cache_scales),
        reference.swiglu_quantize(gate_up, given, power_of_2=power_of_2, cache=True),
        strict=True,
    ):
        assert torch.equal(actual.view(torch.uint8), expected.view(torch.uint8))
    without = ops.swiglu_quantize(gate_up, given, power_of_2=power_of_2)
    assert len(without) == 2
    assert torch.equal(without[0].view(torch.uint8), codes.view(torch.uint8))
    # E4M3 keeps 4 significant bits: half an ulp is 2^-4 of a value, and at least half of 2^-9 of its scale.
    out, per_element = by_hand(gate_up, given), scales.repeat_interleave(128, 1)[:, :width].double().numpy()
    error = np.abs(ops.dequantize_tiles(codes, scales).double().numpy() - out)
    assert bool((error <= np.maximum(np.abs(out) * 2**-4, per_element * 2**-10) * 1.0001).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("weighted", [False, True])
def test_swiglu_backward(dtype: torch.dtype, weighted: bool, rng: torch.Generator) -> None:
    gate_up, weights = example(rng, torch.bfloat16)
    grad = torch.randn(33, 200, generator=rng).to(dtype)
    codes, scales = ops.quantize_tiles(gate_up)
    grad_gate_up, grad_weights, out = ops.swiglu_backward(grad, codes, scales, weights if weighted else None)
    cached = ops.dequantize_tiles(codes, scales)
    wanted = gradients_by_hand(grad, cached, weights if weighted else torch.ones(33))
    assert (grad_gate_up.dtype, out.dtype) == (torch.bfloat16, torch.bfloat16)
    close(grad_gate_up, wanted[0], FP32_ERROR, wanted[2])
    close(out, by_hand(cached, weights if weighted else None), FP32_ERROR)
    if weighted:
        assert grad_weights is not None
        assert grad_weights.dtype == torch.float32
        close(grad_weights, wanted[1], FP32_ERROR + 200 * 2**-24, wanted[3])
    else:
        assert grad_weights is None


def test_no_rows() -> None:
    assert ops.swiglu(torch.empty(0, 8)).shape == (0, 4)
    codes, scales = ops.swiglu_quantize(torch.empty(0, 512))
    assert (codes.shape, scales.shape) == ((0, 256), (0, 2))


def test_opcheck(rng: torch.Generator) -> None:
    gate_up, weights = example(rng, torch.bfloat16)
    torch.library.opcheck(
        OPS.swiglu.default, (gate_up.clone().requires_grad_(), weights.clone().requires_grad_())
    )
    torch.library.opcheck(OPS.swiglu.default, (gate_up.clone().requires_grad_(),))
    torch.library.opcheck(OPS.swiglu_quantize.default, (gate_up, weights))
    _, _, codes, scales = ops.swiglu_quantize(gate_up, weights, cache=True)
    torch.library.opcheck(OPS.swiglu_quantize.default, (gate_up, weights), {"cache": True})
    # test_schema compares inputs before and after, which torch cannot do for FP8 tensors.
    checks = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    grad = torch.randn(33, 200, generator=rng).bfloat16()
    torch.library.opcheck(OPS.swiglu_backward.default, (grad, codes, scales, weights), test_utils=checks)
    torch.library.opcheck(OPS.swiglu_backward.default, (grad, codes, scales), test_utils=checks)


X, W, G = torch.zeros(4, 256), torch.zeros(4), torch.zeros(4, 128)
C, S = torch.zeros(4, 256, dtype=torch.float8_e4m3fn), torch.ones(4, 2)
ERRORS: list[tuple[Callable[[], Any], str]] = [
    (lambda: ops.swiglu(X.int()), "swiglu: gate_up must be bfloat16, float16 or float32, got int32"),
    (
        lambda: ops.swiglu(X[:, 1:]),
        r"swiglu: gate_up must be \[M, 2I\], gate first, then up; got shape \[4, 255\]",
    ),
    (lambda: ops.swiglu(X[0]), r"got shape \[256\]"),
    (lambda: ops.swiglu(X, W.bfloat16()), "swiglu: weights must be float32, got bfloat16"),
    (lambda: ops.swiglu(X, W[:3]), r"swiglu: weights must be \[M\] = \[4\], one for each row, got \[3\]"),
    (
        lambda: ops.swiglu_quantize(X.double()),
        "swiglu_quantize: gate_up must be bfloat16, float16 or float32",
    ),
    (lambda: ops.swiglu_quantize(X, W.double()), "swiglu_quantize: weights must be float32, got float64"),
    (
        lambda: ops.swiglu_backward(G, X, S),
        "gate_up_codes must be float8_e4m3fn, got float32; make them with",
    ),
    (lambda: ops.swiglu_backward(G, C[0], S), r"gate_up_codes must be \[M, 2I\], got shape \[256\]"),
    (lambda: ops.swiglu_backward(G, C, S.double()), "gate_up_scales must be float32, got float64"),
    (
        lambda: ops.swiglu_backward(G, C, S[:, :1]),
        r"\[M, ceil\(2I/128\)\] = \[4, 2\], got \[4, 1\]; pass the scales",
    ),
    (lambda: ops.swiglu_backward(G.int(), C, S), "grad must be bfloat16, float16 or float32, got int32"),
    (lambda: ops.swiglu_backward(X, C, S), r"grad must be \[M, I\] = \[4, 128\], got \[4, 256\]"),
    (lambda: ops.swiglu_backward(G, C, S, W[1:]), r"swiglu_backward: weights must be \[M\] = \[4\]"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_argument_errors_are_the_same_from_real_and_fake(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as real:
        call()
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(ValueError, match=message) as fake:
        call()
    assert str(real.value) == str(fake.value)
