"""What surrounds the router's kernels: argument errors (fakes raise the same), opcheck."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cpu_tiers import CPU_TIERS
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from deepseek_ext import ops

OPS = torch.ops.deepseek_ext


def test_opcheck(rng: torch.Generator) -> None:
    x = torch.randn(12, 8, generator=rng, requires_grad=True)
    bias, valid = torch.randn(8, generator=rng), torch.rand(12, generator=rng) < 0.5
    options = {"top_k": 2, "n_groups": 4, "topk_groups": 2, "routed_scaling_factor": 2.5}
    torch.library.opcheck(OPS.route.default, (x, bias), options)
    torch.library.opcheck(OPS.route.default, (x, bias, valid), {**options, "norm_topk_prob": False})
    weights, indices, _ = ops.route(x, bias, **options)
    scale = {"routed_scaling_factor": 2.5, "norm_topk_prob": True}
    torch.library.opcheck(OPS.route_backward.default, (weights.detach(), x.detach(), indices), scale)
    balance = {"num_sequences": 3, "alpha": 0.1}
    torch.library.opcheck(OPS.sequence_balance_loss.default, (x, indices), balance)
    torch.library.opcheck(OPS.sequence_balance_loss.default, (x, indices, valid), balance)
    backward = OPS.sequence_balance_loss_backward.default
    torch.library.opcheck(backward, (torch.tensor(2.0), x.detach(), indices, valid), balance)
    torch.library.opcheck(OPS.update_router_bias_.default, (bias, torch.arange(8), 0.1))


ROUTE = {"top_k": 2, "n_groups": 4, "topk_groups": 2, "routed_scaling_factor": 1.0}
SCALE = {"routed_scaling_factor": 1.0, "norm_topk_prob": True}
BALANCE = {"num_sequences": 2, "alpha": 0.1}
X, B, I = torch.zeros(6, 8), torch.zeros(8), torch.zeros(6, 2, dtype=torch.int32)
W, G = torch.zeros(6, 2), torch.ones(())
LOGITS = "logits must be [T, E] with E >= 1, got {}; flatten the leading dimensions"
VALID = "valid must be [T] = [6], one for each token, got [8]; flatten it as logits"
INDICES = "indices must be [T, K] with T = 6 as in logits and K >= 1, got {}; pass the indices of route"

# operator, arguments, options, the text after "operator: "
BAD_CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    (
        "route",
        (X.bfloat16(), B),
        ROUTE,
        "logits must be float32, got bfloat16; compute the router in float32",
    ),
    ("route", (X.double(), B), ROUTE, "logits must be float32, got float64; compute the router in float32"),
    ("route", (X[0], B), ROUTE, LOGITS.format("[8]")),
    ("route", (X[:, :0], B[:0]), ROUTE, LOGITS.format("[6, 0]")),
    ("route", (X, B.half()), ROUTE, "bias must be float32, got float16; keep the router's bias in float32"),
    (
        "route",
        (X, B[:7]),
        ROUTE,
        "bias must be [E] = [8], one for each column of logits, got [7]; pass this router's own bias",
    ),
    *(
        (
            "route",
            (X, B),
            {**ROUTE, "n_groups": groups},
            f"n_groups must divide the 8 experts into groups of equal size, got {groups}; choose a divisor",
        )
        for groups in (3, 0, -1)
    ),
    *(
        (
            "route",
            (X, B),
            {**ROUTE, "topk_groups": kept},
            f"topk_groups must lie in [1, n_groups = 4], got {kept}; n_groups keeps them all",
        )
        for kept in (5, 0)
    ),
    *(
        (
            "route",
            (X, B),
            {**ROUTE, "top_k": top_k},
            f"top_k must lie in [1, 4], the experts of topk_groups = 2 groups, got {top_k}; "
            "choose fewer experts or keep more groups",
        )
        for top_k in (5, 0)
    ),
    ("route", (X, B, X[:, 0]), ROUTE, "valid must be bool, got float32; compare it with 0"),
    ("route", (X, B, B.bool()), ROUTE, VALID),
    (
        "route_backward",
        (W, X.half(), I),
        SCALE,
        "logits must be float32, got float16; compute the router in float32",
    ),
    (
        "route_backward",
        (W, X, I.long()),
        SCALE,
        "indices must be int32, got int64; pass the indices of route",
    ),
    ("route_backward", (W, X, I[:, :0]), SCALE, INDICES.format("[6, 0]")),
    (
        "route_backward",
        (W.double(), X, I),
        SCALE,
        "grad_weights must be float32 [6, 2] as indices, got float64 [6, 2]; pass the gradient of weights",
    ),
    (
        "route_backward",
        (W[:, :1], X, I),
        SCALE,
        "grad_weights must be float32 [6, 2] as indices, got float32 [6, 1]; pass the gradient of weights",
    ),
    (
        "update_router_bias_",
        (B.double(), B.int(), 0.1),
        {},
        "bias must be float32, got float64; keep the router's bias in float32",
    ),
    (
        "update_router_bias_",
        (B, B, 0.1),
        {},
        "load must be int32 or int64, got float32; pass the token counts of route",
    ),
    (
        "update_router_bias_",
        (B, I, 0.1),
        {},
        "load must have bias's shape [..., E], got [6, 2] and [8]; "
        "stack the counts of the routers as their biases are",
    ),
    (
        "update_router_bias_",
        (B[0], B[0].int(), 0.1),
        {},
        "load must have bias's shape [..., E], got [] and []; "
        "stack the counts of the routers as their biases are",
    ),
    (
        "sequence_balance_loss",
        (X, I.long()),
        BALANCE,
        "indices must be int32, got int64; pass the indices of route",
    ),
    ("sequence_balance_loss", (X, I[:5]), BALANCE, INDICES.format("[5, 2]")),
    ("sequence_balance_loss", (X, I[:, 0]), BALANCE, INDICES.format("[6]")),
    ("sequence_balance_loss", (X[None], I), BALANCE, LOGITS.format("[1, 6, 8]")),
    *(
        (
            "sequence_balance_loss",
            (X, I),
            {**BALANCE, "num_sequences": sequences},
            f"num_sequences must divide the 6 tokens into sequences of equal length, got {sequences}; "
            "pad them to one length, with valid = False",
        )
        for sequences in (4, 0)
    ),
    ("sequence_balance_loss", (X, I, B.bool()), BALANCE, VALID),
    ("sequence_balance_loss_backward", (G, X, I, B.bool()), BALANCE, VALID),
    (
        "sequence_balance_loss_backward",
        (G[None], X, I),
        BALANCE,
        "grad must be a float32 scalar, got float32 [1]; pass the gradient of the loss",
    ),
]


@pytest.mark.parametrize(
    ("name", "args", "options", "text"), BAD_CALLS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_argument_errors_real_and_fake(
    name: str, args: tuple[Any, ...], options: dict[str, Any], text: str, backend: str
) -> None:
    call = getattr(OPS, name).default
    with pytest.raises(ValueError) as real:  # noqa: PT011  the whole text is compared below
        call(*args, **options)
    assert str(real.value) == f"{name}: {text}"
    with FakeTensorMode() as mode, pytest.raises(ValueError) as fake:  # noqa: PT011
        call(*[mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args], **options)
    assert str(fake.value) == str(real.value)


@pytest.mark.parametrize("expert", [-1, 8, 2**31 - 1])
def test_values_of_indices(expert: int, backend: str) -> None:
    indices = I.clone()
    indices[3, 1] = expert
    for name, args, options in (
        ("route_backward", (W, X, indices), SCALE),
        ("sequence_balance_loss", (X, indices), BALANCE),
        ("sequence_balance_loss_backward", (G, X, indices), BALANCE),
    ):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            getattr(OPS, name).default(*args, **options)
        assert str(error.value) == (
            f"{name}: indices must lie in [0, E = 8), got {expert}; pass the indices of route"
        )


@pytest.mark.parametrize("expert", [-1, 8, 2**31 - 1, -(2**31)])
def test_bad_indices_are_passed_over_and_touch_no_memory(
    expert: int, backend: str, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    """Kernels that cannot refuse an index must not follow it either."""
    if backend in CPU_TIERS:
        pytest.skip("the CPU refuses them")
    monkeypatch.delenv("DSE_CHECK")
    x, grads = torch.randn(6, 8, generator=rng), torch.randn(6, 2, generator=rng)
    indices = torch.tensor([[1, 2]] * 6, dtype=torch.int32)
    without = OPS.route_backward.default(grads[:, :1], x, indices[:, :1].contiguous(), **SCALE)
    good = OPS.route_backward.default(grads, x, indices, **SCALE)
    indices[3, 1] = expert
    got = OPS.route_backward.default(grads, x, indices, **SCALE)
    others = [0, 1, 2, 4, 5]
    assert torch.equal(got[others], good[others])
    assert torch.equal(got[3], without[3])
    loss = OPS.sequence_balance_loss.default(x, indices, **BALANCE)
    indices[3, 1] = 2
    assert 0 < loss < OPS.sequence_balance_loss.default(x, indices, **BALANCE)
    indices[3, 1] = expert
    grad = OPS.sequence_balance_loss_backward.default(G, x, indices, **BALANCE)
    assert bool(grad.isfinite().all())
