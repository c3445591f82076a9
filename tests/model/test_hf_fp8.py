"""FP8 checkpoints: quantising is a fixed point, the forward's codes, scales of powers of two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hf_models import (  # type: ignore[import-not-found]
    change_config,
    config_of,
    contents,
    small_model,
    tensors_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepseek_ext import load_hf, ops, save_hf
from deepseek_ext.hf_layout import quantise_weight

Quantised = tuple[Tensor, Tensor]


def same_bytes(a: Quantised, b: Quantised) -> bool:
    return torch.equal(a[0].view(torch.uint8), b[0].view(torch.uint8)) and torch.equal(a[1], b[1])


def blocks_with_largest(exponent: int, rng: torch.Generator, count: int = 1 << 16) -> Tensor:
    """[count, 1, 4]: one block each, its largest element drawn from all floats of an exponent."""
    mantissa = torch.randint(1 << 23, (count,), generator=rng)
    bits = ((exponent + 127) << 23) + mantissa if exponent > -127 else mantissa >> (-126 - exponent)
    largest = bits.to(torch.int32).view(torch.float32)
    return largest[:, None, None] * torch.cat([torch.ones(1), torch.rand(3, generator=rng) - 0.5])


@pytest.mark.parametrize("power_of_2", [False, True])
@pytest.mark.parametrize("exponent", [-140, -127, -118, -111, -110, -109, -20, -1, 0, 1, 8, 126, 127])
def test_what_is_written_is_a_fixed_point(exponent: int, power_of_2: bool, rng: torch.Generator) -> None:
    weight = blocks_with_largest(exponent, rng)
    written = quantise_weight(weight, power_of_2=power_of_2)
    plain = ops.quantize_blocks(weight, power_of_2=power_of_2)
    # The values are exactly those of the plain operator ...
    assert torch.equal(ops.dequantize_blocks(*written), ops.dequantize_blocks(*plain))
    # ... and quantising them gives the codes and scales back, which of the plain ones is not true.
    again = quantise_weight(ops.dequantize_blocks(*written), power_of_2=power_of_2)
    assert same_bytes(written, again)
    plain_again = ops.quantize_blocks(ops.dequantize_blocks(*plain), power_of_2=power_of_2)
    all_zero = exponent <= -127
    doubled = power_of_2 and exponent >= -110
    assert same_bytes(plain, plain_again) != (all_zero or doubled)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=9),
    st.booleans(),
)
def test_any_block_is_a_fixed_point(elements: list[float], power_of_2: bool) -> None:
    written = quantise_weight(torch.tensor([elements]), power_of_2=power_of_2)
    again = quantise_weight(ops.dequantize_blocks(*written), power_of_2=power_of_2)
    assert same_bytes(written, again)


@pytest.mark.parametrize("power_of_2", [False, True])
def test_saved_loaded_and_saved_again_is_the_same_to_the_byte(
    power_of_2: bool, rng: torch.Generator, tmp_path: Path
) -> None:
    model = small_model(rng, hidden_size=200, moe_intermediate_size=136, num_nextn_predict_layers=1)
    with torch.no_grad():  # blocks for which quantising once would not do
        o_proj = model.model.layers[0].self_attn.o_proj.weight
        o_proj[:128, :128] = 1e-3 * torch.rand(128, 128, generator=rng)
        o_proj[0, 0] = 228 * 2.0**-9
        o_proj[128:] = 1e-40
    save_hf(model, tmp_path / "a", "fp8", power_of_2=power_of_2, max_shard_size=300_000)
    loaded = load_hf(tmp_path / "a", "fp8")
    save_hf(loaded, tmp_path / "b", "fp8", power_of_2=power_of_2, max_shard_size=300_000)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    scales = [value for name, value in tensors_of(tmp_path / "a").items() if name.endswith("_scale_inv")]
    powers = [bool((scale.frexp().mantissa == 0.5).all()) for scale in scales]
    assert all(powers) if power_of_2 else not any(powers)


def codes_of_forward(weight: Tensor) -> Quantised:
    """As a Linear of precision fp8 makes them of its FP32 weight."""
    return ops.quantize_blocks(weight)


def test_the_forward_multiplies_by_the_codes_of_the_file(rng: torch.Generator, tmp_path: Path) -> None:
    """With FP32 scales. With powers of two it rounds once more, to scales of its own."""
    model = small_model(rng)
    for name, power_of_2 in (("float", False), ("ue8m0", True)):
        save_hf(model, tmp_path / name, "fp8", power_of_2=power_of_2)
    stored = tensors_of(tmp_path / "float")
    loaded = load_hf(tmp_path / "float", "fp8")
    state = loaded.state_dict()
    compared = 0
    for name, codes in stored.items():
        if codes.dtype == torch.float8_e4m3fn and name in state:
            assert same_bytes(codes_of_forward(state[name]), (codes, stored[name + "_scale_inv"])), name
            compared += 1
    assert compared > 10
    # Hence the loaded model is, bit for bit, the one that was saved: wherever gate and up are whole blocks.
    whole = small_model(rng, moe_intermediate_size=128)
    save_hf(whole, tmp_path / "whole", "fp8")
    tokens = torch.randint(96, (2, 9), generator=rng)
    fp8 = load_hf(tmp_path / "whole", "fp8").eval()
    save_hf(whole, tmp_path / "bf16", "float32")
    original = load_hf(tmp_path / "bf16", "fp8").eval()
    with torch.no_grad():  # what FP8 files keep in BF16
        for name, value in original.named_parameters():
            if name.endswith(("layernorm.weight", "norm.weight", "gate.weight", "embed_tokens.weight")):
                value.copy_(value.bfloat16())
        original.weights_changed()
        assert torch.equal(fp8(tokens).logits, original(tokens).logits)

    powers, state = tensors_of(tmp_path / "ue8m0"), load_hf(tmp_path / "ue8m0", "fp8").state_dict()
    name = "model.layers.0.self_attn.o_proj.weight"
    exact = ops.dequantize_blocks(powers[name], powers[name + "_scale_inv"])
    assert torch.equal(state[name], exact)
    assert torch.equal(exact.bfloat16().float(), exact)  # so precision bf16 adds no error to such files
    again = ops.dequantize_blocks(*codes_of_forward(state[name]))
    assert not torch.equal(again, exact)
    # Half the distance of two codes: 2^-4 of a normal one, 2^-10 of the scale below.
    bound = torch.maximum(exact.abs() * 2**-4, ops.quantize_blocks(state[name])[1].max() * 2.0**-10)
    assert ((again - exact).abs() <= bound).all()


def move_scales(folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Puts all scales of a checkpoint into a file of their own, in a dtype."""
    stored = tensors_of(folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    scales = {name: value.to(dtype) for name, value in stored.items() if name.endswith("_scale_inv")}
    codes = {name: value for name, value in stored.items() if name not in scales}
    safetensors.torch.save_file(codes, folder / "codes.safetensors")
    safetensors.torch.save_file(scales, folder / "scales.safetensors")
    weight_map = dict.fromkeys(codes, "codes.safetensors") | dict.fromkeys(scales, "scales.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
def test_scales_may_be_in_another_file_and_dtype(
    dtype: torch.dtype, rng: torch.Generator, tmp_path: Path
) -> None:
    save_hf(small_model(rng), tmp_path / "a", "fp8", power_of_2=True)
    wanted = load_hf(tmp_path / "a", "fp32").state_dict()
    move_scales(tmp_path / "a", dtype)
    assert {v.dtype for n, v in tensors_of(tmp_path / "a").items() if "scale" in n} == {dtype}
    for name, value in load_hf(tmp_path / "a", "fp32").state_dict().items():
        assert torch.equal(value, wanted[name]), name


def test_values_are_code_times_scale(rng: torch.Generator, tmp_path: Path) -> None:
    """Of a file that is not ours: any scales, largest codes below 448; written out in plain torch."""
    model = small_model(rng, hidden_size=200)
    save_hf(model, tmp_path / "a", "fp8")
    stored = tensors_of(tmp_path / "a")
    name = "model.layers.0.self_attn.o_proj.weight"
    codes = torch.randint(0, 0x70, (200, 128), generator=rng, dtype=torch.uint8).view(torch.float8_e4m3fn)
    scales = torch.rand(2, 1, generator=rng) + 0.01
    stored[name], stored[name + "_scale_inv"] = codes, scales
    for file in (tmp_path / "a").glob("model*"):
        file.unlink()
    safetensors.torch.save_file(stored, tmp_path / "a" / "model.safetensors")
    rows = scales.repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)
    assert torch.equal(load_hf(tmp_path / "a", "fp32").state_dict()[name], codes.float() * rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_method": "gptq"}, r"config.json: quant_method 'gptq' is not read; .fp8. is"),
        ({"weight_block_size": [64, 128]}, r"weight_block_size must be \[128, 128\], got \[64, 128\]"),
        ({"fmt": "e5m2"}, "fmt must be e4m3, got 'e5m2'"),
    ],
)
def test_other_quantisation_is_refused(
    changes: dict[str, object], message: str, rng: torch.Generator, tmp_path: Path
) -> None:
    save_hf(small_model(rng), tmp_path / "a", "fp8")
    stated = config_of(tmp_path / "a")["quantization_config"]
    change_config(tmp_path / "a", quantization_config={**stated, **changes})
    with pytest.raises(ValueError, match=message):
        load_hf(tmp_path / "a")
