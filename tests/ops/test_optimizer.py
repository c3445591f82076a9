"""adamw_step_ bit for bit against numpy's FP32 and ml_dtypes' BF16; its course against torch's AdamW."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from deepseek_ext import ops
from deepseek_ext.reference import optimizer as reference

OPS = torch.ops.deepseek_ext
HYPER = {"lr": 3e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
SHAPES = [(150, 1000), (7,), (), (0, 4), (30, 5, 2)]  # the first is worked on in several pieces
F32 = np.float32
Array = npt.NDArray[Any]


def tensors(rng: torch.Generator, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [(torch.randn(shape, generator=rng) * scale).to(dtype) for shape in SHAPES]


def to_numpy(x: Tensor) -> Array:
    return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if x.dtype == torch.bfloat16 else x.numpy()


def step_by_hand(
    p: Array, g: Array, m: Array, v: Array, step: int, grad_scale: float, *, lr: float, beta1: float,
    beta2: float, eps: float, weight_decay: float
) -> tuple[Array, Array, Array]:  # fmt: skip
    g = g * F32(grad_scale)
    m32 = m.astype(F32) * F32(beta1) + g * F32(1 - beta1)
    v32 = v.astype(F32) * F32(beta2) + g * F32(1 - beta2) * g
    denominator = np.sqrt(v32) * F32((1 - beta2**step) ** -0.5) + F32(eps)
    p = p * F32(1 - lr * weight_decay) - m32 * F32(lr / (1 - beta1**step)) / denominator
    return p, m32.astype(m.dtype), v32.astype(v.dtype)


@pytest.mark.parametrize("moments", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("grad_scale", [1.0, 0.37])
def test_three_steps_bit_for_bit(moments: torch.dtype, grad_scale: float, rng: torch.Generator) -> None:
    params = tensors(rng)
    exp_avgs, exp_avg_sqs = ([torch.zeros(s, dtype=moments) for s in SHAPES] for _ in range(2))
    expected = [
        tuple(to_numpy(t.clone()) for t in three) for three in zip(params, exp_avgs, exp_avg_sqs, strict=True)
    ]
    for step in (1, 2, 3):
        grads = tensors(rng, scale=10.0 ** (-step))
        before = [g.clone() for g in grads]
        ops.adamw_step_(params, grads, exp_avgs, exp_avg_sqs, **HYPER, step=step, grad_scale=grad_scale)
        assert all(torch.equal(a, b) for a, b in zip(grads, before, strict=True))
        for i, (p, m, v) in enumerate(expected):
            p, m, v = expected[i] = step_by_hand(p, grads[i].numpy(), m, v, step, grad_scale, **HYPER)
            np.testing.assert_array_equal(params[i].numpy(), p)
            np.testing.assert_array_equal(to_numpy(exp_avgs[i]), m)
            np.testing.assert_array_equal(to_numpy(exp_avg_sqs[i]), v)


def test_follows_torch_adamw(rng: torch.Generator) -> None:
    """Twenty steps beside torch's AdamW in FP64: the reference too, the operator within FP32's rounding."""
    params = tensors(rng)[1:]
    moments = [torch.zeros_like(p) for p in params], [torch.zeros_like(p) for p in params]
    exact = [p.double() for p in params]
    exact_moments = [torch.zeros_like(p) for p in exact], [torch.zeros_like(p) for p in exact]
    oracle = [p.double().requires_grad_() for p in params]
    optimizer = torch.optim.AdamW(
        oracle, lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=False
    )
    for step in range(1, 21):
        grads = tensors(rng)[1:]
        wide = [g.double() for g in grads]
        for p, g in zip(oracle, wide, strict=True):
            p.grad = g
        optimizer.step()
        ops.adamw_step_(params, grads, *moments, **HYPER, step=step)
        reference.adamw_step_(exact, wide, *exact_moments, **HYPER, step=step)
    for p, e, q in zip(params, exact, oracle, strict=True):
        torch.testing.assert_close(e, q.detach(), rtol=1e-13, atol=1e-13)
        # A step moves a parameter by at most lr * sqrt(step) and is exact to a few ulp (m cancels at most 20
        # terms); the parameter itself is rounded twice a step.
        bound = 20 * 2**-23 * (q.detach().abs() + 1) + 20 * 3e-3 * 40 * 2**-24 * 20**0.5
        assert bool(((p - q).abs() <= bound).all())


def test_no_decay_means_none(rng: torch.Generator) -> None:
    params = tensors(rng)
    before = [p.clone() for p in params]
    zeros = [[torch.zeros(s) for s in SHAPES] for _ in range(3)]
    ops.adamw_step_(params, *zeros, **{**HYPER, "weight_decay": 0.0}, step=1)
    assert all(torch.equal(a, b) for a, b in zip(params, before, strict=True))


def test_views_with_any_strides_and_parameters_that_require_grad(rng: torch.Generator) -> None:
    flat, grad = torch.randn(40, 30, generator=rng), torch.randn(30, 40, generator=rng).T
    strided = torch.empty(30, 40).T.copy_(flat).requires_grad_()
    moments = [[torch.zeros(40, 30)] for _ in range(4)]
    ops.adamw_step_([strided], [grad], moments[0], moments[1], **HYPER, step=1)
    ops.adamw_step_([flat], [grad.contiguous()], moments[2], moments[3], **HYPER, step=1)
    assert torch.equal(strided, flat)
    assert strided.is_leaf


def test_a_gradient_that_is_not_finite_stays_in_its_place() -> None:
    params, moments = [torch.ones(4)], [[torch.zeros(4)] for _ in range(2)]
    ops.adamw_step_(params, [torch.tensor([1.0, torch.nan, 1, 1])], *moments, **HYPER, step=1)
    assert params[0].isnan().tolist() == [False, True, False, False]


def test_opcheck(rng: torch.Generator) -> None:
    lists = tensors(rng), tensors(rng), tensors(rng, dtype=torch.bfloat16), tensors(rng, dtype=torch.bfloat16)
    lists[3][0].abs_()
    torch.library.opcheck(OPS.adamw_step_.default, lists, {**HYPER, "step": 2})


def call(
    *, params: Any = None, grads: Any = None, m: Any = None, v: Any = None, **options: Any
) -> Callable[[], None]:
    def run() -> None:
        lists = [[torch.zeros(3, 2)] if x is None else x for x in (params, grads, m, v)]
        ops.adamw_step_(*lists, **{**HYPER, "step": 1, **options})

    return run


ERRORS = [
    (call(params=[torch.zeros(3, 2).bfloat16()]), r"adamw_step_: params\[0\] must be float32, got bfloat16"),
    (call(grads=[torch.zeros(3, 2).half()]), r"adamw_step_: grads\[0\] must be float32, got float16"),
    (call(m=[torch.zeros(3, 2).half()]), r"exp_avgs\[0\] must be bfloat16 or float32, got float16"),
    (call(v=[]), "exp_avg_sqs must hold 1 tensors like params, got 0"),
    (
        call(v=[torch.zeros(2, 3)]),
        r"exp_avg_sqs\[0\] must have the shape of params\[0\], \[3, 2\], got \[2, 3\]",
    ),
    (call(beta1=1.0), r"beta1 must lie in \[0, 1\), got 1.0"),
    (call(beta2=-0.1), r"beta2 must lie in \[0, 1\), got -0.1"),
    (call(eps=-1e-8), "eps must not be negative, got -1e-08"),
    (call(step=0), "step must be at least 1, got 0; count the first step as 1"),
]


@pytest.mark.parametrize(("run", "message"), ERRORS)
def test_argument_errors_are_the_same_from_real_and_fake(run: Callable[[], None], message: str) -> None:
    with pytest.raises(ValueError, match=message) as real:
        run()
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(ValueError, match=message) as fake:
        run()
    assert str(real.value) == str(fake.value)
