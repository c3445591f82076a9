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
# The first is shared between threads and is cut into pieces by the reference; 33 is two vectors and one.
SHAPES = [(150, 1000), (7,), (), (0, 4), (30, 5, 2), (33,)]
DTYPES = {torch.float32: np.dtype(np.float32), torch.bfloat16: np.dtype(ml_dtypes.bfloat16)}
F32 = np.float32
Array = npt.NDArray[Any]
Lists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


def tensors(rng: torch.Generator, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [(torch.randn(shape, generator=rng) * scale).to(dtype) for shape in SHAPES]


def to_numpy(x: Tensor) -> Array:
    return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if x.dtype == torch.bfloat16 else x.numpy()


def bits(x: Tensor) -> Tensor:
    return x.detach().contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def assert_same_bits(got: list[Tensor], wanted: list[Tensor]) -> None:
    for i, (a, b) in enumerate(zip(got, wanted, strict=True)):
        assert torch.equal(bits(a), bits(b)), f"tensor {i}: {(bits(a) != bits(b)).sum()} elements differ"


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


@pytest.mark.parametrize(
    "moments",
    [(m, v) for m in DTYPES for v in DTYPES],
    ids=lambda pair: "-".join(str(d).removeprefix("torch.") for d in pair),
)
@pytest.mark.parametrize("grad_scale", [1.0, 0.37])
def test_three_steps_bit_for_bit(
    moments: tuple[torch.dtype, torch.dtype],
    grad_scale: float,
    backend: str,
    threads: int,
    rng: torch.Generator,
) -> None:
    params = tensors(rng)
    exp_avgs, exp_avg_sqs = ([torch.zeros(s, dtype=dtype) for s in SHAPES] for dtype in moments)
    expected = [
        tuple(to_numpy(t.clone()) for t in three) for three in zip(params, exp_avgs, exp_avg_sqs, strict=True)
    ]
    for step in (1, 2, 3):
        grads = tensors(rng, scale=10.0 ** (-step))
        before = [g.clone() for g in grads]
        ops.adamw_step_(params, grads, exp_avgs, exp_avg_sqs, **HYPER, step=step, grad_scale=grad_scale)
        assert_same_bits(grads, before)
        for i, (p, m, v) in enumerate(expected):
            p, m, v = expected[i] = step_by_hand(p, grads[i].numpy(), m, v, step, grad_scale, **HYPER)
            np.testing.assert_array_equal(params[i].numpy(), p)
            np.testing.assert_array_equal(to_numpy(exp_avgs[i]), m)
            np.testing.assert_array_equal(to_numpy(exp_avg_sqs[i]), v)


def of_all_magnitudes(rng: torch.Generator, count: int) -> Tensor:
    """From the smallest denormal to overflow, and zeros, infinities and NaN."""
    x = torch.randn(count, generator=rng) * 2.0 ** torch.randint(-149, 128, (count,), generator=rng)
    x[::29] = 0.0
    x[5::101], x[6::101], x[7::101] = torch.inf, -torch.inf, torch.nan
    return x


def clone(lists: Lists) -> Lists:
    return tuple([x.clone() for x in tensors] for tensors in lists)  # type: ignore[return-value]


@pytest.mark.parametrize("moments", DTYPES, ids=str)
def test_any_numbers_and_options_give_the_reference_s_bits(
    moments: torch.dtype, backend: str, rng: torch.Generator
) -> None:
    """No NaN but a NaN differs: which of the many is left open."""
    options: dict[str, Any]
    for options in (
        {**HYPER, "step": 1},
        {**HYPER, "step": 100_000, "grad_scale": 2.0**-100},
        {**HYPER, "step": 3, "lr": 0.0, "eps": 0.0},
        {**HYPER, "step": 7, "beta1": 0.0, "beta2": 0.0, "weight_decay": 0.0, "lr": 1e30},
    ):
        ours: Lists = tuple([of_all_magnitudes(rng, 3000)] for _ in range(4))  # type: ignore[assignment]
        ours = ours[0], ours[1], [ours[2][0].to(moments)], [ours[3][0].abs().to(moments)]
        wanted = clone(ours)
        ops.adamw_step_(*ours, **options)
        reference.adamw_step_(*wanted, **options)
        for got, right in zip(ours, wanted, strict=True):
            assert torch.equal(got[0].isnan(), right[0].isnan())
            assert_same_bits([got[0].nan_to_num(0.5)], [right[0].nan_to_num(0.5)])


def test_denormals_survive_where_the_caller_flushes_them(cpu_tier: str, rng: torch.Generator) -> None:
    lists: Lists = tuple([torch.randn(1000, generator=rng) * 2.0**-130] for _ in range(4))  # type: ignore[assignment]
    lists[3][0].abs_()
    flushed, wanted = clone(lists), clone(lists)
    ops.adamw_step_(*wanted, **HYPER, step=1)
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormals")
    try:
        ops.adamw_step_(*flushed, **HYPER, step=1)
    finally:
        torch.set_flush_denormal(False)
    for got, right in zip(flushed, wanted, strict=True):
        assert_same_bits(got, right)
    assert bool(((wanted[2][0] != 0) & (wanted[2][0].abs() < 2.0**-126)).any()), "the test needs denormals"


def test_many_small_tensors_are_as_one_large_one(backend: str, threads: int, rng: torch.Generator) -> None:
    """Ends of tensors anywhere: within vectors, within a thread's share, several of no elements in a row."""
    sizes = torch.randint(0, 300, (400,), generator=rng).tolist()
    whole: Lists = tuple([torch.randn(sum(sizes), generator=rng)] for _ in range(4))  # type: ignore[assignment]
    whole[3][0].abs_()
    parts = tuple([part.clone() for part in x[0].split(sizes)] for x in whole)
    ops.adamw_step_(*whole, **HYPER, step=2)
    ops.adamw_step_(*parts, **HYPER, step=2)
    for got, wanted in zip(parts, whole, strict=True):
        assert_same_bits([torch.cat(got)], wanted)


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
    assert_same_bits(params, before)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.clone(),
    "transposed": lambda x: x.transpose(0, 1).clone(memory_format=torch.contiguous_format).transpose(0, 1),
    "every third": lambda x: torch.stack([x, x + 1, x - 1], -1)[..., 0],
    "rows apart": lambda x: torch.cat([x, x], 2)[..., : x.shape[2]],
}


@pytest.mark.parametrize("moments", DTYPES, ids=str)
@pytest.mark.parametrize("layouts", ["transposed all", "all different", "all gaps"])
def test_views_with_any_strides(
    moments: torch.dtype, layouts: str, backend: str, threads: int, rng: torch.Generator
) -> None:
    shape = (9, 40, 70)  # 25,200 elements: more than one thread's least share
    wanted: Lists = tuple([torch.randn(shape, generator=rng)] for _ in range(4))  # type: ignore[assignment]
    wanted = wanted[0], wanted[1], [wanted[2][0].to(moments)], [wanted[3][0].abs().to(moments)]
    names = {
        "transposed all": ["transposed"] * 4,
        "all different": list(LAYOUTS),
        "all gaps": ["rows apart"] * 4,
    }[layouts]
    ours = tuple([LAYOUTS[name](x[0])] for name, x in zip(names, wanted, strict=True))
    ops.adamw_step_(*ours, **HYPER, step=2)
    reference.adamw_step_(*wanted, **HYPER, step=2)
    for got, right in zip(ours, wanted, strict=True):
        assert_same_bits(got, right)


def test_nothing_beside_a_view_changes(backend: str, rng: torch.Generator) -> None:
    base = torch.randn(20, 30, generator=rng)
    before = base.clone()
    zeros = [torch.ones(20, 10)], [torch.zeros(20, 10)], [torch.zeros(20, 10)]
    ops.adamw_step_([base[:, 5:15]], *zeros, **HYPER, step=1)
    assert torch.equal(base[:, :5], before[:, :5])
    assert torch.equal(base[:, 15:], before[:, 15:])
    assert bool((base[:, 5:15] != before[:, 5:15]).all())


def test_an_expanded_gradient(backend: str, rng: torch.Generator) -> None:
    ours, wanted = ([torch.ones(5, 6)] for _ in range(2))
    moments = [[torch.zeros(5, 6)] for _ in range(4)]
    ops.adamw_step_(ours, [torch.tensor(2.0).expand(5, 6)], *moments[:2], **HYPER, step=1)
    reference.adamw_step_(wanted, [torch.full((5, 6), 2.0)], *moments[2:], **HYPER, step=1)
    assert_same_bits(ours, wanted)


def test_no_tensors_at_all(backend: str) -> None:
    ops.adamw_step_([], [], [], [], **HYPER, step=1)
    with pytest.raises(ValueError, match="step must be at least 1, got 0"):
        ops.adamw_step_([], [], [], [], **HYPER, step=0)


def test_a_gradient_that_is_not_finite_stays_in_its_place(backend: str) -> None:
    params, moments = [torch.ones(4)], [[torch.zeros(4)] for _ in range(2)]
    ops.adamw_step_(params, [torch.tensor([1.0, torch.nan, 1, 1])], *moments, **HYPER, step=1)
    assert params[0].isnan().tolist() == [False, True, False, False]


def test_autograd_notices_the_change() -> None:
    """Parameters may require gradients and stay leaves; whoever has saved one hears of its change."""
    param = torch.ones(3, requires_grad=True)
    loss = (param * param).sum()
    rest = [torch.ones(3)], [torch.zeros(3)], [torch.zeros(3, dtype=torch.bfloat16)]
    versions = [x._version for x in (param, *(tensors[0] for tensors in rest))]
    ops.adamw_step_([param], *rest, **HYPER, step=1)
    now = [x._version for x in (param, *(tensors[0] for tensors in rest))]
    assert [b - a for a, b in zip(versions, now, strict=True)] == [1, 0, 1, 1]
    assert param.is_leaf
    assert param.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_in_inference_mode() -> None:
    with torch.inference_mode():
        lists = [[torch.ones(3)] for _ in range(4)]
        ops.adamw_step_(*lists, **HYPER, step=1)
    outside = [torch.ones(3)], *lists[1:]
    ops.adamw_step_(*outside, **HYPER, step=1)
    assert bool((lists[0][0] < 1).all())
    assert bool((outside[0][0] < 1).all())


def test_under_compile(rng: torch.Generator) -> None:
    lists = tensors(rng), tensors(rng), tensors(rng, dtype=torch.bfloat16), tensors(rng, dtype=torch.bfloat16)
    for x in lists[3]:
        x.abs_()
    wanted = clone(lists)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(params: list[Tensor], grads: list[Tensor], m: list[Tensor], v: list[Tensor]) -> list[Tensor]:
        ops.adamw_step_(params, grads, m, v, **HYPER, step=2)
        return [p + 1 for p in params]

    result = run(*lists)
    ops.adamw_step_(*wanted, **HYPER, step=2)
    for got, right in zip(lists, wanted, strict=True):
        assert_same_bits(got, right)
    assert_same_bits(result, [p + 1 for p in wanted[0]])


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
    (call(grads=[torch.zeros(3, 2)] * 2), "grads must hold 1 tensors like params, got 2"),
    (
        call(v=[torch.zeros(2, 3)]),
        r"exp_avg_sqs\[0\] must have the shape of params\[0\], \[3, 2\], got \[2, 3\]",
    ),
    (call(grads=[torch.zeros(6)]), r"grads\[0\] must have the shape of params\[0\], \[3, 2\], got \[6\]"),
    (
        call(m=[torch.zeros(3, 1).expand(3, 2)]),
        r"exp_avgs\[0\] must not share memory between its elements, got strides \[1, 0\] for shape \[3, 2\]; "
        r"pass a \.clone\(\)",
    ),
    (call(beta1=1.0), r"beta1 must lie in \[0, 1\), got 1.0; "),
    (call(beta1=float("nan")), r"beta1 must lie in \[0, 1\), got nan; "),
    (call(beta2=-0.1), r"beta2 must lie in \[0, 1\), got -0.1; "),
    (call(beta2=1e15), r"beta2 must lie in \[0, 1\), got 1000000000000000.0; "),
    (call(beta2=1.25e16), r"beta2 must lie in \[0, 1\), got 1.25e\+16; "),
    (call(beta2=float("-inf")), r"beta2 must lie in \[0, 1\), got -inf; "),
    (call(eps=-1e-8), "eps must not be negative, got -1e-08; "),
    (call(eps=-0.0001), "eps must not be negative, got -0.0001; "),
    (call(eps=-1.0 / 3), "eps must not be negative, got -0.3333333333333333; "),
    (call(step=0), "step must be at least 1, got 0; count the first step as 1"),
]


@pytest.mark.parametrize(("run", "message"), ERRORS)
def test_argument_errors_are_the_same_from_real_and_fake(
    run: Callable[[], None], message: str, backend: str
) -> None:
    with pytest.raises(ValueError, match=message) as real:
        run()
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(ValueError, match=message) as fake:
        run()
    assert str(real.value) == str(fake.value)
