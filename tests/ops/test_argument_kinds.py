"""Every argument of every public operator given as something of another kind: one sentence, in one form, that
names the operator and the argument."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from deepseek_ext import Float8Linear, ops

T, H, N, E, K = 6, 160, 128, 4, 2
Arguments = dict[str, Any]


def tokens() -> Tensor:
    return torch.randn(T, H)


def ends() -> Tensor:
    return torch.tensor([1, 3, 3, T], dtype=torch.int32)


def choices() -> Tensor:
    return torch.arange(T * K, dtype=torch.int32).view(T, K) % E


def order() -> ops.permute.ExpertOrder:
    return ops.expert_order(choices(), E)


def tiles(x: Tensor) -> Arguments:
    return dict(zip(("codes", "scales"), ops.quantize_tiles(x), strict=True))


def blocks() -> Arguments:
    return dict(zip(("codes", "scales"), ops.quantize_blocks(torch.randn(N, H)), strict=True))


def packed() -> Arguments:
    return dict(zip(("packed", "scales"), ops.quantize_e5m6(tokens()), strict=True)) | {"k": H}


def gemm(out: bool = False, *, experts: int | None = None) -> Arguments:
    a, a_scales = ops.quantize_tiles(tokens())
    b, b_scales = ops.quantize_blocks(torch.randn(*([experts] if experts else []), N, H))
    given = {"a": a, "a_scales": a_scales, "b": b, "b_scales": b_scales}
    return ({"out": torch.zeros(T, N)} if out else {}) | given | ({"offs": ends()} if experts else {})


def wgrad(out: bool = False) -> Arguments:
    a_t, a_scales_t = ops.quantize_tiles_transposed(torch.randn(T, N), ends())
    b_t, b_scales_t = ops.quantize_tiles_transposed(tokens(), ends())
    given = {"a_t": a_t, "a_scales_t": a_scales_t, "b_t": b_t, "b_scales_t": b_scales_t, "offs": ends()}
    return ({"out": torch.zeros(E, N, H)} if out else {}) | given


def gate_up() -> Arguments:
    return {"gate_up": torch.randn(T, 2 * N), "weights": torch.rand(T)}


def cached() -> Arguments:
    codes, scales = ops.quantize_tiles(torch.randn(T, 2 * N))
    given = {"grad": torch.randn(T, N), "gate_up_codes": codes, "gate_up_scales": scales}
    return given | {"weights": torch.rand(T)}


def experts() -> Arguments:
    weights = {"gate_up": torch.randn(E, 2 * N, H), "down": torch.randn(E, H, N)}
    codes = tuple(ops.quantize_blocks(w) for w in weights.values())
    return {"x": tokens(), "weights": torch.rand(T, K), "indices": choices(), **weights, "codes": codes}


def linear() -> Arguments:
    weight = torch.randn(N, H)
    return {"x": tokens(), "weight": weight, "codes": ops.quantize_blocks(weight), "power_of_2": False}


def attention(backward: bool = False) -> Arguments:
    operands = {"q": torch.randn(1, 2, T, 16), "k": torch.randn(1, 2, T, 16), "v": torch.randn(1, 2, T, 8)}
    options = {"scale": 0.25, "starts": torch.zeros(1, T).int()}
    if backward:
        out, logsumexp = ops.causal_attention(**operands, **options)
        operands = {"grad": torch.ones_like(out), **operands, "out": out, "logsumexp": logsumexp}
    return operands | options


def norm() -> Arguments:
    x, weight = torch.randn(T, H), torch.ones(H)
    return {"x": x, "weight": weight, "rstd": ops.rms_norm(x, weight, 1e-6)[1]}


def rope(backward: bool = False) -> Arguments:
    if backward:
        grads = {name: torch.randn(1, 2, T, 24) for name in ("grad_q", "grad_k", "grad_v")}
        return grads | {"rotation": torch.ones(T, 4, dtype=torch.complex64)}
    given = {"q": torch.randn(1, T, 48), "kv": torch.randn(1, T, 64), "k_rope": torch.randn(1, T, 8)}
    return given | {"rotation": torch.ones(T, 4, dtype=torch.complex64), "heads": 2}


def adamw() -> Arguments:
    lists = {
        name: [torch.ones(3), torch.ones(2, 2)] for name in ("params", "grads", "exp_avgs", "exp_avg_sqs")
    }
    return lists | {"lr": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "step": 1}


ROUTING = {"top_k": K, "n_groups": 2, "topk_groups": 1, "routed_scaling_factor": 2.5}
GOOD: dict[str, Callable[[], Arguments]] = {
    "adamw_step_": adamw,
    "causal_attention": attention,
    "causal_attention_backward": lambda: attention(backward=True),
    "combine_rows": lambda: {
        "rows_out": torch.randn(T * K, H), "slots": order().slots, "weights": torch.rand(T, K),
        "residual": tokens(),
    },
    "cross_entropy_": lambda: {"logits": torch.randn(T, N), "targets": torch.randint(N, (T,))},
    "dequantize_blocks": lambda: blocks() | {"dtype": torch.float32},
    "dequantize_e5m6": lambda: packed() | {"dtype": torch.float32},
    "dequantize_tiles": lambda: tiles(tokens()) | {"dtype": torch.float32},
    "expert_order": lambda: {"indices": choices(), "num_experts": E},
    "fp8_linear": linear,
    "gather_rows": lambda: {
        "x": tokens(), "rows": order().rows, "top_k": K, "weights": torch.rand(T, K)
    },
    "gather_tiles": lambda: tiles(tokens()) | {"rows": order().rows, "top_k": K},
    "gemm": lambda: gemm() | {"out_dtype": torch.float32},
    "gemm_accumulate_": lambda: gemm(out=True),
    "grouped_gemm": lambda: gemm(experts=E) | {"out_dtype": torch.float32},
    "grouped_gemm_wgrad": wgrad,
    "grouped_gemm_wgrad_accumulate_": lambda: wgrad(out=True),
    "moe_ffn": experts,
    "quantize_blocks": lambda: {"w": torch.randn(N, H), "power_of_2": True},
    "quantize_e5m6": lambda: {"x": tokens()},
    "quantize_tiles": lambda: {"x": tokens(), "power_of_2": True},
    "quantize_tiles_both": lambda: {"x": tokens(), "offs": ends(), "power_of_2": True},
    "quantize_tiles_transposed": lambda: {"x": tokens(), "offs": ends(), "power_of_2": True},
    "retile": lambda: tiles(tokens()) | {"offs": ends(), "power_of_2": True},
    "retile_e5m6": packed,
    "rms_norm": lambda: {"x": tokens(), "weight": torch.ones(H), "eps": 1e-6},
    "rms_norm_again": norm,
    "rms_norm_backward": lambda: {"grad": torch.ones(T, H)} | norm(),
    "rope_heads_": rope,
    "rope_heads_backward_": lambda: rope(backward=True),
    "route": lambda: {
        "logits": torch.randn(T, E), "bias": torch.zeros(E), **ROUTING, "valid": torch.ones(T) > 0
    },
    "sequence_balance_loss": lambda: {
        "logits": torch.randn(T, E), "indices": choices(), "num_sequences": 2, "alpha": 0.1,
        "valid": torch.ones(T) > 0,
    },
    "swiglu": gate_up,
    "swiglu_backward": cached,
    "swiglu_gradient": lambda: {"grad": torch.randn(T, N), **gate_up()},
    "swiglu_quantize": lambda: gate_up() | {"power_of_2": False, "cache": True},
    "transpose_blocks": blocks,
    "update_router_bias_": lambda: {"bias": torch.zeros(E), "load": torch.ones(E).int(), "rate": 0.1},
}  # fmt: skip
OPTIONAL = {"weights", "residual", "offs", "valid", "codes", "starts"}
"""Arguments that may be None in some operator."""


def said(call: Callable[..., Any], arguments: Arguments) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011  the text is what the caller checks
        call(**arguments)
    text = str(error.value)
    assert "\n" not in text
    assert error.value.__suppress_context__ or error.value.__context__ is None, (
        "torch's own words are left out"
    )
    return text


def replaced(arguments: Arguments, name: str, change: Callable[[Tensor], Any]) -> Arguments:
    """Arguments of which the named one, or the first tensor in it, is changed."""

    def first(value: Any) -> Any:
        return change(value) if isinstance(value, Tensor) else type(value)([first(value[0]), *value[1:]])

    return arguments | {name: first(arguments[name])}


def holds_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and holds_tensors(value[0]))


@pytest.fixture(params=GOOD)
def op(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_operator_is_here() -> None:
    assert set(GOOD) == {name for name in ops.__all__ if hasattr(torch.ops.deepseek_ext, name)} - {
        "cpu_capability"
    }


def test_good_arguments_are_good(op: str) -> None:
    getattr(ops, op)(**GOOD[op]())


WRONG: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "list": (lambda x: [1.0, 2.0], r"must be a Tensor, got list; make one"),
    "numpy": (lambda x: np.ones(3), r"must be a Tensor, got ndarray; make one"),
    "None": (lambda x: None, r"must be a Tensor, got None; pass one"),
    "sparse": (
        lambda x: torch.eye(3).to_sparse(),
        "must be a plain dense tensor, got layout sparse_coo; convert",
    ),
    "nested": (
        lambda x: torch.nested.nested_tensor([torch.ones(2, 3)], layout=torch.jagged),
        "must be a plain dense tensor, got a nested one; convert",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_plain_tensor(op: str, kind: str) -> None:
    change, text = WRONG[kind]
    for name, value in GOOD[op]().items():
        if not holds_tensors(value) or (kind == "None" and name in OPTIONAL):
            continue
        at = name + (r"(\[0\])+" if isinstance(value, (list, tuple)) else "")
        assert re.match(f"{op}: {at} {text}", said(getattr(ops, op), replaced(GOOD[op](), name, change)))


def test_two_devices(op: str) -> None:
    """From the function and from the operator behind it, which would compute nothing and say nothing."""
    arguments = GOOD[op]()
    held = [name for name, value in arguments.items() if holds_tensors(value)]
    if len(held) == 1 and not isinstance(arguments[held[0]], list):
        return
    for name in held:
        wrong = replaced(GOOD[op](), name, lambda x: x.to("meta"))
        text = said(getattr(ops, op), wrong)
        assert re.match(
            rf"{op}: [\w\[\]]+ must be on the device of [\w\[\]]+, (cpu|meta), got (cpu|meta);", text
        )
        if op not in ("fp8_linear", "moe_ffn", "adamw_step_"):  # which take their codes otherwise; or lists
            assert said(getattr(torch.ops.deepseek_ext, op), wrong).startswith(f"{op}: ")


def test_numbers_of_another_kind(op: str) -> None:
    for name, value in GOOD[op]().items():
        if holds_tensors(value):
            continue
        wanted = "dtype" if isinstance(value, torch.dtype) else type(value).__name__
        given = GOOD[op]() | {name: "2"}
        text = f"{op}: {name} must be of type {wanted}, got str; convert it first"
        assert said(getattr(ops, op), given) == text
    whole = next(iter(GOOD[op]()))
    assert said(getattr(ops, op), GOOD[op]() | {whole: 3}).startswith(f"{op}: {whole} must be a ")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float64, torch.int64, torch.uint16], ids=str)
def test_another_dtype(op: str, dtype: torch.dtype) -> None:
    right = {"load": torch.int64, "targets": torch.int64, "rotation": torch.complex64}
    for name, value in GOOD[op]().items():
        if not holds_tensors(value) or right.get(name) is dtype:
            continue
        text = said(getattr(ops, op), replaced(GOOD[op](), name, lambda x: torch.empty(x.shape, dtype=dtype)))
        assert re.match(rf"{op}: .*{name}", text)
        assert str(dtype).removeprefix("torch.") in text
        assert ";" in text, "what to do"


def test_every_dtype_has_the_same_name_in_both_languages() -> None:
    """Kernels and fakes raise one text; the names of dtypes are where it could differ."""
    dtypes = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    compared = 0
    for dtype in dtypes - {torch.float32, torch.bfloat16, torch.float16}:
        x = torch.empty(2, 128, dtype=torch.uint8)
        try:
            x = torch.empty(2, 128, dtype=dtype)
        except RuntimeError:  # torch cannot make one
            continue
        if x.is_quantized or re.search(r"u?int[1-7]$|bits", str(dtype)):
            continue  # no kernel of the stable ABI can be given these
        with FakeTensorMode() as mode:
            fake = said(ops.quantize_tiles, {"x": mode.from_tensor(x)})
        assert said(ops.quantize_tiles, {"x": x}) == fake
        compared += 1
    assert compared > 15


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda layer, x: (layer.double(), x.double()),
            "Float8Linear: x must be bfloat16 or float32, got float64",
        ),
        (lambda layer, x: (layer.half(), x), "Float8Linear: weight must be bfloat16 or float32, got float16"),
        (
            lambda layer, x: (layer, x[:, 1:]),
            "Float8Linear: x must be [..., K], K = 160 as in weight, got shape",
        ),
        (
            lambda layer, x: (layer, x.to("meta")),
            "fp8_linear: weight must be on the device of x, meta, got cpu;",
        ),
    ],
)
def test_a_layer_names_itself(change: Callable[..., tuple[Float8Linear, Tensor]], text: str) -> None:
    layer, x = change(Float8Linear(H, N), tokens())
    assert said(layer, {"x": x}).startswith(text)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("codes", lambda c: (c[0].view(torch.uint8), c[1])),
        ("codes", lambda c: (c[0][1:], c[1])),
        ("codes", lambda c: (c[0], c[1][:, 1:])),
        ("codes", lambda c: (c[0], c[1].double())),
        ("codes", lambda c: c[0]),
        ("codes", lambda c: (*c, c[0])),
    ],
)
def test_codes_of_a_weight(name: str, change: Callable[[Any], Any]) -> None:
    """No inner operator speaks instead of the one that was called."""
    given = linear()
    text = said(ops.fp8_linear, given | {name: change(given[name])})
    assert re.match(r"fp8_linear: (codes|scales)( of weight)? must be .* quantize_blocks", text)
    given = experts()
    text = said(ops.moe_ffn, given | {name: (given[name][0], change(given[name][1]))})
    assert re.match(r"moe_ffn: (codes|scales)(\[1\]| of down) must be .* quantize_blocks", text)


def test_an_index_of_no_expert() -> None:
    text = said(ops.moe_ffn, experts() | {"indices": choices() + E})
    assert text.startswith(f"moe_ffn: indices must lie in [-1, {E}), got {E} at position 0;")
