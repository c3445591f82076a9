"""Telemetry: its figures on tensors made by hand, every operand of a model, and not one bit of it changed."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from many import run  # type: ignore[import-not-found]
from nursery import Nursery  # type: ignore[import-not-found]
from same_run import assert_same_run  # type: ignore[import-not-found]
from tiny_run import ROOT, Flags  # type: ignore[import-not-found]

from deepseek_ext import DeepseekV3, ModelConfig, cli, convert_linears, ops
from deepseek_ext.ops import accumulate_weight_gradients
from deepseek_ext.reference.quantize import _in_place_of_columns, dequantize_blocks
from deepseek_ext.train import TrainConfig
from deepseek_ext.train.metrics import read_metrics
from deepseek_ext.train.telemetry import Statistics, Watch, _as_columns, measure, together

FIGURES = ("underflow", "saturated", "scale_spread", "relative_error")
FP8_OPERANDS = {"activation", "weight", "gradient", "activation_t", "gradient_t"}


def measured(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, **kwargs: Any) -> dict[str, Any]:
    return measure(x, codes.float(), scales, **kwargs).row()


def test_underflow_counts_zeros_of_either_sign() -> None:
    x = torch.zeros(1, 128)
    x[0, :6] = torch.tensor([448.0, 2.0**-11, -(2.0**-11), 2.0**-9, 0.0, -0.0])
    codes, scales = ops.quantize_tiles(x)
    row = measured(x, codes, scales)
    assert row["underflow"] == 2 / 128
    assert row["saturated"] == 0
    error = math.sqrt(2 * 2.0**-22 / float(x.double().square().sum()))
    assert row["relative_error"] == pytest.approx(error)


def test_what_is_not_finite_saturates_and_what_the_scale_cuts_off() -> None:
    x = torch.linspace(1, 2, 128)[None].clone()
    x[0, 5] = math.inf
    x[0, 6] = math.nan
    codes, scales = ops.quantize_tiles(x)
    assert measured(x, codes, scales)["saturated"] == 2 / 128
    assert measured(x, codes, scales)["relative_error"] < 0.04
    # A scale of before, half as large as these elements want: what lies beyond 448 of it is cut off.
    x = torch.linspace(1, 2, 128)[None].clone()
    scale = torch.full((1, 1), 1 / 448)
    cut = (x / scale).clamp(max=448).to(torch.float8_e4m3fn)
    assert measured(x, cut, scale)["saturated"] == 127 / 128


@pytest.mark.parametrize("power_of_2", [False, True])
def test_a_scale_of_the_largest_magnitude_saturates_nothing(power_of_2: bool) -> None:
    x = torch.randn(64, 300) * torch.randn(64, 1).exp()
    assert measured(x, *ops.quantize_tiles(x, power_of_2=power_of_2))["saturated"] == 0
    assert measured(x, *ops.quantize_blocks(x, power_of_2=power_of_2))["saturated"] == 0


def test_the_spread_leaves_out_tiles_of_zeros() -> None:
    x = torch.ones(3, 300)
    x[1] *= 64
    x[2] = 0
    assert measured(x, *ops.quantize_tiles(x))["scale_spread"] == pytest.approx(6)
    assert measured(x[2:], *ops.quantize_tiles(x[2:]))["scale_spread"] == 0


@pytest.mark.parametrize("shape", [(130, 300), (128, 128), (1, 40), (3, 200, 256)])
def test_against_plain_arithmetic(shape: tuple[int, ...]) -> None:
    """Blocks of weights and stacks of them, by the dequantised reference."""
    w = torch.randn(shape) * torch.randn(shape).exp()
    codes, scales = ops.quantize_blocks(w)
    back = dequantize_blocks(codes, scales).double()
    row = measured(w, codes, scales)
    assert row["underflow"] == ((back == 0) & (w != 0)).double().mean()
    assert row["relative_error"] == pytest.approx(float((w - back).norm() / w.double().norm()), rel=1e-6)
    assert row["scale_spread"] == pytest.approx(math.log2(scales.max() / scales.min()), abs=1e-6)


@pytest.mark.parametrize("ends", [None, [3, 3, 140, 200], [0, 0, 0, 0]])
def test_rows_lie_where_the_transposed_codes_have_them(ends: list[int] | None) -> None:
    x = torch.randn(200, 5)
    offs = None if ends is None else torch.tensor(ends, dtype=torch.int32)
    codes, _ = ops.quantize_tiles_transposed(x, offs)
    placed, elements = _as_columns(x, offs, codes.shape[1])
    assert torch.equal(placed, _in_place_of_columns(x, offs).T)
    assert elements == (200 if ends is None else ends[-1]) * 5


def test_sums_of_several_are_those_of_all() -> None:
    parts = [torch.randn(64, 128) * scale for scale in (1, 100)]
    total = Statistics()
    for part in parts:
        codes, scales = ops.quantize_tiles(part)
        total.add(measure(part, codes.float(), scales))
    whole = torch.cat(parts)
    codes, scales = ops.quantize_tiles(whole)
    assert total.row() == pytest.approx(measure(whole, codes.float(), scales).row())


def test_of_no_rows_there_is_nothing_to_say() -> None:
    """What a rank has whose experts nobody chose."""
    nothing = torch.empty(0, 300)
    row = measured(nothing, *ops.quantize_tiles(nothing))
    assert row == {"underflow": 0, "saturated": 0, "scale_spread": 0, "relative_error": 0}


def watched(model: DeepseekV3, **kwargs: Any) -> list[dict[str, Any]]:
    tokens = torch.randint(model.config.vocab_size, (2, 33))
    with Watch(model) as watch, accumulate_weight_gradients():
        model.loss(tokens[:, :-1], tokens[:, 1:], **kwargs).total.backward()
    return together([watch.seen()], watch.order)


def test_every_operand_of_every_layer_is_seen() -> None:
    model = DeepseekV3(ModelConfig.preset("tiny"))
    seen: dict[str, set[str]] = defaultdict(set)
    for row in watched(model):
        if "operand" in row:
            assert 0 <= row["underflow"] < 0.1
            assert row["saturated"] == 0
            assert row["relative_error"] < 0.04
            seen[row["layer"]].add(row["operand"])
    fp8 = {
        name
        for name, module in model.named_modules()
        if getattr(module, "precision", "") == "fp8" and hasattr(module, "weight")
    }
    stacked = {name for name in fp8 if name.endswith(("gate_proj", "up_proj"))}
    wanted = (fp8 - stacked) | {name + "+up_proj" for name in stacked if name.endswith("gate_proj")}
    experts = [name for name, _ in model.named_parameters() if ".experts." in name]
    assert set(seen) == wanted | set(experts)
    for layer, operands in seen.items():
        keeps = layer.endswith(("o_proj", "down_proj", "experts.down"))
        assert operands == FP8_OPERANDS | ({"cache"} if keeps else set()), layer


def test_the_weight_of_a_layer_is_its_own() -> None:
    model = DeepseekV3(ModelConfig.preset("tiny"))
    o_proj = model.model.layers[1].self_attn.o_proj
    with torch.no_grad():
        o_proj.weight[:, :] = 2.0**-20
        o_proj.weight[0, 0] = 1.0
    rows = {(row["layer"], row.get("operand")): row for row in watched(model)}
    row = rows["model.layers.1.self_attn.o_proj", "weight"]
    n, k = o_proj.weight.shape
    assert row["underflow"] == (min(n, 128) * min(k, 128) - 1) / (n * k)
    assert rows["model.layers.0.self_attn.o_proj", "weight"]["underflow"] < 0.01


def test_retiling_by_powers_of_two_loses_nothing_of_the_experts() -> None:
    """Tokens, and the gradient at the experts' output, have power-of-two scales for this (section 3.3.2)."""
    rows = {
        (row["layer"], row.get("operand")): row for row in watched(DeepseekV3(ModelConfig.preset("tiny")))
    }
    assert rows["model.layers.2.mlp.experts.gate_up", "activation_t"]["relative_error"] == 0
    assert rows["model.layers.2.mlp.experts.down", "gradient_t"]["relative_error"] == 0
    assert rows["model.layers.2.mlp.experts.gate_up", "activation"]["relative_error"] > 0.01


@pytest.mark.parametrize("precision", ["fp8", "bf16"])
def test_load_is_that_of_the_routers(precision: Any) -> None:
    model = DeepseekV3(ModelConfig.preset("tiny"), precision=precision)
    rows = watched(model)
    routers = [row for row in rows if "load" in row]
    assert [row["load"] for row in routers] == model.router_load().tolist()
    assert [row["layer"] for row in routers] == [f"model.layers.{n}.mlp.gate" for n in (1, 2, 3)]
    load = model.router_load()[0].double()
    assert routers[0]["max_vio"] == pytest.approx(float(load.max() / load.mean() - 1))
    if precision == "bf16":
        assert len(rows) == len(routers)


def test_converted_layers_are_seen_too() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.GELU(), torch.nn.Linear(96, 32))
    convert_linears(model, lambda name, linear: True)
    x = torch.randn(40, 64, requires_grad=True)
    with Watch(model) as watch:
        model(x).sum().backward()
    seen = {(row["layer"], row["operand"]) for row in together([watch.seen()], watch.order)}
    assert seen == {(layer, operand) for layer in "02" for operand in FP8_OPERANDS}


def rows_of(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def test_no_bit_of_a_run_changes(flags: Flags, tmp_path: Path) -> None:
    """Nor of what comes after a step that was watched; validation between them, two micro-batches."""
    settings = {"precision": "fp8", "micro_sequences": 2, "validate_every": 2, "tokens": 768}
    for name, more in (("plain", {}), ("seen", {"telemetry": 2})):
        args = flags(**settings, **more, run_dir=tmp_path / name)
        assert cli.train(TrainConfig(), args, program="test") == 0
    figures = ("loss", "grad_norm", "max_vio_by_router", "mtp_acceptance", "val_bits_per_byte")
    plain, seen = (
        [[row.get(figure) for figure in figures] for row in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("plain", "seen")
    )
    assert plain == seen
    assert not (tmp_path / "plain" / "telemetry.jsonl").exists()
    rows = rows_of(tmp_path / "seen", "telemetry.jsonl")
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "training.md").read_text()))
    for row in [*rows, *rows_of(tmp_path / "seen", "metrics.jsonl")]:
        assert row.keys() <= documented
    assert sorted({row["step"] for row in rows}) == [2, 4, 6]
    for step in (2, 4, 6):
        at = [row for row in rows if row["step"] == step]
        assert {row["tokens"] for row in at} == {128 * step}
        assert {row["operand"] for row in at if "operand" in row} == FP8_OPERANDS | {"cache"}
        (metrics,) = [r for r in read_metrics(tmp_path / "seen" / "metrics.jsonl") if r["step"] == step]
        vio = [row["max_vio"] for row in at if "load" in row]
        assert vio == pytest.approx(metrics["max_vio_by_router"])


def test_a_resumed_run_cuts_it_back(flags: Flags, tmp_path: Path) -> None:
    args = flags(telemetry=1, tokens=512, precision="fp8")
    assert cli.train(TrainConfig(), args, program="test") == 0
    path = tmp_path / "run" / "telemetry.jsonl"
    before = path.read_text()
    later = before.splitlines()[-1].replace('"step": 4', '"step": 5')
    with open(path, "a") as file:
        file.write(later + "\n" + '{"step": 6, "lay')
    assert cli.train(TrainConfig(), flags(telemetry=1, tokens=640, precision="fp8"), program="test") == 0
    rows = rows_of(tmp_path / "run", "telemetry.jsonl")
    assert path.read_text().startswith(before)
    count = len(rows) // 5
    assert [row["step"] for row in rows] == [step for step in range(1, 6) for _ in range(count)]


@pytest.mark.processes
@pytest.mark.parametrize(("size", "ep"), [(2, 1), (4, 2)])
def test_several_processes_see_what_one_sees(
    nursery: Nursery, flags: Flags, tmp_path: Path, size: int, ep: int
) -> None:
    """All tokens and all experts, whichever rank they are on; and their run does not change by it."""
    settings = {"precision": "fp8", "tokens": 512, "seq_len": 64, "prompts": (), "checkpoint_every": 2}
    layouts: dict[str, tuple[int, dict[str, object]]] = {
        "one": (1, {"telemetry": 1}),
        "seen": (size, {"telemetry": 1, "ep": ep}),
        "plain": (size, {"ep": ep}),
    }
    for name, (processes, more) in layouts.items():
        (tmp_path / name).mkdir()
        args = flags(**settings, **more, run_dir=tmp_path / name / "run")
        run(nursery, args, tmp_path / name, processes)
    assert_same_run(tmp_path / "seen" / "run", tmp_path / "plain" / "run")
    one, several = (
        {
            (row["layer"], row.get("operand")): row
            for row in rows_of(tmp_path / name / "run", "telemetry.jsonl")
            if row["step"] == 1  # later they part by what rounding makes of the first update
        }
        for name in ("one", "seen")
    )
    assert list(several) == list(one)
    for (layer, operand), row in one.items():
        other = several[layer, operand]
        if operand is None:
            assert sum(other["load"]) == sum(row["load"])
            # A choice that is nearly a tie may turn.
            assert all(abs(a - b) <= 2 for a, b in zip(other["load"], row["load"], strict=True))
        elif operand == "weight" or (ep == 1 and not operand.endswith("_t")):  # other tiles along the tokens
            assert all(other[figure] == pytest.approx(row[figure], rel=1e-12) for figure in FIGURES), layer
        else:
            assert other["relative_error"] == pytest.approx(row["relative_error"], abs=2e-3), layer
            assert other["underflow"] == pytest.approx(row["underflow"], abs=2e-3), layer


def test_memory_of_a_stack_goes_to_others_once_it_is_quantised() -> None:
    """As where a weight is gathered there later in the step."""
    model = DeepseekV3(ModelConfig.preset("tiny"))
    names = "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"
    gate, up = (model.get_parameter(f"{name}.weight").detach() for name in names)
    with Watch(model) as watch:
        stack = torch.cat([gate, up])
        ops.quantize_blocks(stack)
        ops.quantize_blocks(stack.mul_(2))
    ((key, statistics),) = watch.seen().operands.items()
    assert key == ("model.layers.0.mlp.gate_proj+up_proj", "weight")
    assert statistics.elements == stack.numel()
