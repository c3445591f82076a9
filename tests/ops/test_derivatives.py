"""Second derivatives, and derivatives of operators that have none: a sentence instead of wrong numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from deepseek_ext import Float8Linear, ops

TOKENS, HIDDEN, WIDTH, EXPERTS, TOP_K = 6, 160, 128, 4, 2
Function = Callable[..., Tensor]


def indices() -> Tensor:
    return torch.rand(TOKENS, EXPERTS).argsort(1)[:, :TOP_K].int()


def route(logits: Tensor) -> Tensor:
    bias = torch.zeros(EXPERTS)
    return ops.route(logits, bias, top_k=TOP_K, n_groups=2, topk_groups=2, routed_scaling_factor=1.0).weights


def moe_ffn(x: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    return ops.moe_ffn(x, weights, INDICES, gate_up, down)


def float8_linear(x: Tensor, weight: Tensor) -> Tensor:
    return torch.func.functional_call(Float8Linear(HIDDEN, WIDTH, bias=False), {"weight": weight}, x)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ops.causal_attention(q, k, v, 0.25)[0]


def balance(logits: Tensor) -> Tensor:
    return ops.sequence_balance_loss(logits, INDICES, num_sequences=2, alpha=1.0)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return ops.rms_norm(x, weight, 1e-6)[0]


INDICES = indices()
ONCE: dict[str, tuple[Function, list[tuple[int, ...]]]] = {
    "fp8_linear": (ops.fp8_linear, [(TOKENS, HIDDEN), (WIDTH, HIDDEN)]),
    "Float8Linear": (float8_linear, [(TOKENS, HIDDEN), (WIDTH, HIDDEN)]),
    "moe_ffn": (
        moe_ffn,
        [(TOKENS, HIDDEN), (TOKENS, TOP_K), (EXPERTS, 2 * WIDTH, HIDDEN), (EXPERTS, HIDDEN, WIDTH)],
    ),
    "causal_attention": (attention, [(1, 2, TOKENS, 16), (1, 2, TOKENS, 16), (1, 2, TOKENS, 8)]),
    "rms_norm": (rms_norm, [(TOKENS, HIDDEN), (HIDDEN,)]),
    "swiglu": (ops.swiglu, [(TOKENS, 2 * WIDTH), (TOKENS,)]),
    "route": (route, [(TOKENS, EXPERTS)]),
    "sequence_balance_loss": (balance, [(TOKENS, EXPERTS)]),
}


@pytest.fixture(params=ONCE)
def once(request: pytest.FixtureRequest) -> tuple[str, Function, list[Tensor]]:
    """An operator with first derivatives only: its name in messages, a call, and leaves for it."""
    function, shapes = ONCE[request.param]
    name = "fp8_linear" if request.param == "Float8Linear" else request.param
    return name, function, [torch.randn(shape).requires_grad_() for shape in shapes]


def test_a_gradient_penalty_is_refused(once: tuple[str, Function, list[Tensor]]) -> None:
    """Each leaf's gradient by backward, and by grad with respect to any leaf, before or after the operator,
    alone or in a sum whose other terms are differentiable."""
    name, function, leaves = once
    after = torch.randn((), requires_grad=True)
    said = f"^{name}: second derivatives are not implemented; leave it out of"
    for loss in (
        function(*leaves).sum(),  # the gradient that comes in does not require grad itself
        (function(*(2 * leaf for leaf in leaves)) * after).square().sum(),
    ):
        for first in torch.autograd.grad(loss, leaves, create_graph=True):
            penalty = first.norm()
            with pytest.raises(NotImplementedError, match=said):
                penalty.backward(retain_graph=True)
            with pytest.raises(NotImplementedError, match=said):
                (loss + penalty).backward(retain_graph=True)
            for leaf in leaves:
                with pytest.raises(NotImplementedError, match=said):
                    torch.autograd.grad(loss + penalty, leaf, retain_graph=True, allow_unused=True)


def test_create_graph_alone_changes_no_gradient(once: tuple[str, Function, list[Tensor]]) -> None:
    _, function, leaves = once
    weight = torch.randn_like(function(*leaves))
    loss = (function(*leaves) * weight).sum()
    wanted = torch.autograd.grad(loss, leaves, retain_graph=True)
    got = torch.autograd.grad(loss, leaves, retain_graph=True, create_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def nodes(tensor: Tensor) -> set[str]:
    todo, seen = [tensor.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [child for child, _ in node.next_functions]
    return {node.name() for node in seen}


def test_compiled_and_plain_calls_have_one_derivative(
    once: tuple[str, Function, list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.compile sees what torch.library registers; a plain call takes a node of ours."""
    name, function, leaves = once
    plain = function(*leaves)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    compiled = function(*leaves)
    monkeypatch.undo()
    assert f"{name}Backward" in nodes(plain)
    assert any(node.startswith(f"GeneratedBackwardFor_deepseek_ext_{name}") for node in nodes(compiled))
    assert torch.equal(plain, compiled)
    weight = torch.randn_like(plain)
    for a, b in zip(*(torch.autograd.grad(y, leaves, weight) for y in (plain, compiled)), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        assert torch.equal(function(*leaves), plain)


@pytest.mark.filterwarnings("ignore:.*batching rule")
def test_vmap_runs_an_operator_for_each_slice() -> None:
    x, weight = torch.randn(3, TOKENS, HIDDEN), torch.ones(HIDDEN)
    wanted = torch.stack([rms_norm(rows, weight) for rows in x])
    assert torch.equal(torch.vmap(rms_norm, (0, None))(x, weight), wanted)


def test_weights_that_accumulate_in_place_do_not_escape() -> None:
    layer, x = nn.Linear(HIDDEN, WIDTH, bias=False), torch.randn(TOKENS, HIDDEN)
    for context in (False, True):
        layer.zero_grad()
        with ops.accumulate_weight_gradients():
            loss = ops.fp8_linear(x, layer.weight).square().sum()
        with warnings.catch_warnings(action="ignore"):  # torch's, of a cycle between parameter and gradient
            loss.backward(create_graph=context)
        if not context:
            wanted = layer.weight.grad
    assert torch.equal(layer.weight.grad, wanted)
    with pytest.raises(NotImplementedError, match=r"^fp8_linear: second"):
        layer.weight.grad.norm().backward()
    layer.zero_grad()  # ends the cycle


def grouped() -> dict[str, Tensor]:
    x, w = torch.randn(TOKENS, HIDDEN), torch.randn(EXPERTS, WIDTH, HIDDEN)
    a, a_scales = ops.quantize_tiles(x)
    b, b_scales = ops.quantize_blocks(w)
    ends = torch.tensor([1, 3, 3, TOKENS], dtype=torch.int32)
    return {"a": a, "a_scales": a_scales, "b": b, "b_scales": b_scales, "offs": ends}


def dense() -> dict[str, Tensor]:
    return {name: t[0] if name.startswith("b") else t for name, t in grouped().items() if name != "offs"}


def transposed() -> dict[str, Tensor]:
    offs = grouped()["offs"]
    a, b = torch.randn(TOKENS, WIDTH), torch.randn(TOKENS, HIDDEN)
    a_t, a_scales_t = ops.quantize_tiles_transposed(a, offs)
    b_t, b_scales_t = ops.quantize_tiles_transposed(b, offs)
    return {"a_t": a_t, "a_scales_t": a_scales_t, "b_t": b_t, "b_scales_t": b_scales_t, "offs": offs}


def gate_up() -> dict[str, Tensor]:
    x = torch.randn(TOKENS, 2 * WIDTH)
    return {"grad": torch.randn(TOKENS, WIDTH), "gate_up": x, "weights": torch.ones(TOKENS)}


def cached() -> dict[str, Tensor]:
    given = gate_up()
    codes, scales = ops.quantize_tiles(given.pop("gate_up"))
    return {**given, "gate_up_codes": codes, "gate_up_scales": scales}


NEVER: dict[str, tuple[str, Callable[[], dict[str, Tensor]]]] = {
    "gemm": ("fp8_linear", dense),
    "gemm_accumulate_": ("fp8_linear", lambda: {"out": torch.zeros(TOKENS, WIDTH), **dense()}),
    "grouped_gemm": ("moe_ffn", grouped),
    "grouped_gemm_wgrad": ("moe_ffn", transposed),
    "grouped_gemm_wgrad_accumulate_": (
        "moe_ffn",
        lambda: {"out": torch.zeros(EXPERTS, WIDTH, HIDDEN), **transposed()},
    ),
    "swiglu_gradient": ("swiglu", gate_up),
    "swiglu_backward": ("swiglu", cached),
}


@pytest.mark.parametrize("name", NEVER)
def test_operators_without_a_derivative_name_the_one_that_has_it(name: str) -> None:
    instead, arguments = NEVER[name]
    operator = getattr(ops, name)
    operator(**arguments())
    for argument, tensor in arguments().items():
        if not tensor.is_floating_point():
            continue
        given = {**arguments(), argument: tensor.requires_grad_()}
        said = f"^{name}: {argument} must not require grad, .* call {instead}, or pass {argument}.detach"
        with pytest.raises(ValueError, match=said):
            operator(**given)
        with torch.no_grad():
            operator(**given)
