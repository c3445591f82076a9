"""Wrong arguments of the gemm family: one sentence that says what was wanted and what was given, the same
from the kernels and from the fakes that torch.compile sees; and torch's own checks of the registrations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gemm_inputs import Operands, random_operands
from test_gemm_grouped import grouped_operands, offsets, transposed_operands
from torch import Tensor
from torch._subclasses import FakeTensorMode

from deepseek_ext import ops

Arguments = dict[str, Any]
LOADS = [3, 0, 130]


def dense(rng: torch.Generator) -> Arguments:
    a, a_scales, b, b_scales = random_operands(5, 300, 200, rng)
    return {"a": a, "a_scales": a_scales, "b": b, "b_scales": b_scales}


def accumulate(rng: torch.Generator) -> Arguments:
    return {"out": torch.zeros(5, 300)} | dense(rng)


def grouped(rng: torch.Generator) -> Arguments:
    a, a_scales, b, b_scales = grouped_operands(LOADS, 300, 200, rng)
    return {"a": a, "a_scales": a_scales, "b": b, "b_scales": b_scales, "offs": offsets(LOADS)}


def wgrad(rng: torch.Generator) -> Arguments:
    a, a_scales, b, b_scales = transposed_operands(LOADS, 70, 50, rng)
    return {
        "a_t": a,
        "a_scales_t": a_scales,
        "b_t": b,
        "b_scales_t": b_scales,
        "offs": offsets(LOADS),
    }


def wgrad_accumulate(rng: torch.Generator) -> Arguments:
    return {"out": torch.zeros(3, 70, 50)} | wgrad(rng)


GOOD: dict[str, Callable[[torch.Generator], Arguments]] = {
    "gemm": dense,
    "gemm_accumulate_": accumulate,
    "grouped_gemm": grouped,
    "grouped_gemm_wgrad": wgrad,
    "grouped_gemm_wgrad_accumulate_": wgrad_accumulate,
}


def to(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda x: x.float().to(dtype)


# operator, argument, what is done to it, what the message must say
BAD: list[tuple[str, str, Callable[[Any], Any], str]] = [
    ("gemm", "a", lambda x: x[0], "gemm: a must be [M, K], got shape [200]"),
    (
        "gemm",
        "a",
        to(torch.float32),
        "a must hold float8_e4m3fn codes, got float32; make them with quantize_",
    ),
    ("gemm", "b", to(torch.float8_e5m2), "b must hold float8_e4m3fn codes, got float8_e5m2; make them"),
    ("gemm", "b", lambda x: x[None], "b must be [N, K], got shape [1, 300, 200]"),
    (
        "gemm",
        "b",
        lambda x: x[:, 1:],
        "agree in their last dimension K, got [5, 200] and [300, 199]; transpose",
    ),
    ("gemm", "a_scales", to(torch.bfloat16), "a_scales must be float32, got bfloat16"),
    (
        "gemm",
        "a_scales",
        lambda x: x[:, :1],
        "[M, ceil(K/128)] = [5, 2], one scale for each tile or block of a,",
    ),
    ("gemm", "b_scales", lambda x: x[:2], "b_scales must be [ceil(N/128), ceil(K/128)] = [3, 2]"),
    ("gemm", "b_scales", lambda x: x.repeat(100, 1)[:, :1], "b_scales must be [N, ceil(K/128)] = [300, 2]"),
    ("gemm", "b_scales", lambda x: x[0], "got [2]; pass the scales that came with b"),
    (
        "gemm",
        "out_dtype",
        lambda _: torch.float16,
        "out_dtype must be bfloat16 or float32, got float16; convert",
    ),
    ("gemm_accumulate_", "out", to(torch.bfloat16), "gemm_accumulate_: out must be float32, got bfloat16"),
    ("gemm_accumulate_", "out", lambda x: x[:, 1:], "out must be [M, N] = [5, 300], got [5, 299]"),
    (
        "gemm_accumulate_",
        "out",
        lambda x: x.t().contiguous().t(),
        "stride 1 along its last dimension, got 5;",
    ),
    ("gemm_accumulate_", "a", lambda x: x[:, :1], "must agree in their last dimension K"),
    ("grouped_gemm", "b", lambda x: x[0], "grouped_gemm: b must be [E, N, K], got shape [300, 200]"),
    (
        "grouped_gemm",
        "a",
        lambda x: x[:, :3],
        "must agree in their last dimension K, got [133, 3] and [3, 300,",
    ),
    ("grouped_gemm", "b_scales", lambda x: x[:, :1], "[E, ceil(N/128), ceil(K/128)] = [3, 3, 2], one scale"),
    ("grouped_gemm", "offs", lambda x: x.long(), "offs must be int32, got int64"),
    (
        "grouped_gemm",
        "offs",
        lambda x: x[None],
        "offs must be [E], the end of each expert's rows, got shape [1,",
    ),
    ("grouped_gemm", "offs", lambda x: x[:2], "one end for each of the 3 experts of b, got 2"),
    ("grouped_gemm", "out_dtype", lambda _: torch.float64, "must be bfloat16 or float32, got float64"),
    (
        "grouped_gemm_wgrad",
        "a_t",
        lambda x: x[:, :300],
        "agree in their last dimension M', got [70, 300] and",
    ),
    ("grouped_gemm_wgrad", "a_scales_t", lambda x: x[1:], "[N, M'/128] = [70, 3], one scale for each"),
    ("grouped_gemm_wgrad", "b_scales_t", lambda x: x[1:], "[K, M'/128] = [50, 3], one scale for each"),
    ("grouped_gemm_wgrad", "b_t", to(torch.uint8), "b_t must hold float8_e4m3fn codes, got uint8; make them"),
    ("grouped_gemm_wgrad", "offs", lambda x: x.float(), "offs must be int32, got float32"),
    (
        "grouped_gemm_wgrad_accumulate_",
        "out",
        lambda x: x[:2],
        "out must be [E, N, K] = [3, 70, 50], got [2,",
    ),
    ("grouped_gemm_wgrad_accumulate_", "out", lambda x: x.half(), "out must be float32, got float16"),
]


def message(op: str, arguments: Arguments) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011  the text is what the caller checks
        getattr(ops, op)(**arguments)
    return str(error.value)


def fake_message(op: str, arguments: Arguments) -> str:
    with FakeTensorMode() as mode:
        fakes = {k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in arguments.items()}
        return message(op, fakes)


@pytest.mark.parametrize(
    ("op", "name", "change", "said"), BAD, ids=lambda x: x if isinstance(x, str) else None
)
def test_message(
    op: str, name: str, change: Callable[[Any], Any], said: str, backend: str, rng: torch.Generator
) -> None:
    arguments = GOOD[op](rng)
    arguments[name] = change(arguments.get(name))
    real = message(op, arguments)
    assert real.startswith(f"{op}: ")
    assert said in real
    assert fake_message(op, arguments) == real


def test_columns_must_be_whole_tiles(backend: str, rng: torch.Generator) -> None:
    arguments = wgrad(rng)
    for name in ("a_t", "b_t"):
        arguments[name] = arguments[name][:, :300]
    real = message("grouped_gemm_wgrad", arguments)
    assert "a_t must have M' columns, a multiple of 128, got 300; make it with" in real
    assert fake_message("grouped_gemm_wgrad", arguments) == real


@pytest.mark.parametrize(
    ("op", "ends", "said"),
    [
        ("grouped_gemm", [3, 2, 133], "offs must ascend from 0 to at most M = 133, got 2 after 3 at index 1"),
        ("grouped_gemm", [-1, 2, 133], "got -1 after 0 at index 0"),
        ("grouped_gemm", [3, 3, 134], "got 134 after 3 at index 2"),
        ("grouped_gemm_wgrad", [3, 2, 133], "offs must ascend from 0 to at most M' = 384, got 2 after 3"),
        ("grouped_gemm_wgrad", [3, 3, 385], "got 385 after 3 at index 2"),
        ("grouped_gemm_wgrad", [3, 130, 133], "offs need 384 columns"),
    ],
)
def test_values_of_offs(op: str, ends: list[int], said: str, backend: str, rng: torch.Generator) -> None:
    arguments = GOOD[op](rng)
    if said.startswith("offs need"):  # one tile too few
        for name in ("a_t", "b_t", "a_scales_t", "b_scales_t"):
            arguments[name] = arguments[name][:, : 256 if name in ("a_t", "b_t") else 2]
    arguments["offs"] = torch.tensor(ends, dtype=torch.int32)
    assert said in message(op, arguments)


@pytest.mark.parametrize("op", GOOD)
def test_opcheck(op: str, rng: torch.Generator) -> None:
    """Without test_schema: it compares inputs before and after in arithmetic that torch lacks for FP8."""
    arguments = tuple(GOOD[op](rng).values())
    keywords = {"out_dtype": torch.float32} if op in ("gemm", "grouped_gemm") else {}
    tests = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(getattr(torch.ops.deepseek_ext, op).default, arguments, keywords, test_utils=tests)


@pytest.mark.parametrize("op", GOOD)
def test_inputs_are_left_alone(op: str, backend: str, rng: torch.Generator) -> None:
    """What test_schema would have checked."""
    arguments = GOOD[op](rng)
    before = {name: x.clone() for name, x in arguments.items()}
    getattr(ops, op)(**arguments)
    for name, x in arguments.items():
        if name != "out":
            assert torch.equal(x.view(torch.uint8), before[name].view(torch.uint8)), name


def test_fakes_know_shapes_and_dtypes(rng: torch.Generator) -> None:
    for op in ("gemm", "grouped_gemm", "grouped_gemm_wgrad"):
        arguments = GOOD[op](rng)
        real = getattr(ops, op)(**arguments)
        with FakeTensorMode() as mode:
            fake = getattr(ops, op)(**{k: mode.from_tensor(v) for k, v in arguments.items()})
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


def test_good_arguments_are_good(backend: str, rng: torch.Generator) -> None:
    """So that each bad call above is bad for one reason."""
    for op, make in GOOD.items():
        getattr(ops, op)(**make(rng))
    assert isinstance(random_operands(1, 1, 1, rng), Operands)
