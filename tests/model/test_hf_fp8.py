"""FP8 checkpoints: quantising is a fixed point, the forward's codes, scales of powers of two."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

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
from torch.utils._python_dispatch import TorchDispatchMode

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


class WeightsInUse(TorchDispatchMode):
    """Collects the codes and scales that products multiply by, as bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[bytes] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = {"deepseek_ext::gemm": 2, "deepseek_ext::moe_ffn": 5}.get(func.name())
        for k in range(first, len(args), 2) if first else ():
            self.found.add(bytes_of(args[k], args[k + 1]))
        return func(*args, **(kwargs or {}))


def bytes_of(codes: Tensor, scales: Tensor) -> bytes:
    return b"".join(t.contiguous().view(torch.uint8).numpy().tobytes() for t in (codes, scales))


def weights_of_file(folder: Path) -> set[bytes]:
    """The codes and scales of a checkpoint, stacked as the model multiplies by them."""
    stored = tensors_of(folder)
    groups: dict[str, list[Quantised]] = {}
    for name, codes in stored.items():
        if codes.dtype == torch.float8_e4m3fn:
            stack = (
                re.sub(r"experts\.\d+\.", "experts.", name)
                .replace("gate_proj", "up")
                .replace("up_proj", "up")
            )
            groups.setdefault(stack, []).append((codes, stored[name + "_scale_inv"]))
    return {bytes_of(*(torch.cat(parts) for parts in zip(*group, strict=True))) for group in groups.values()}


def rewrite(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Puts other tensors into a checkpoint, as one file without an index."""
    for file in folder.glob("model*"):
        file.unlink()
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("power_of_2", [False, True])
def test_the_model_multiplies_by_the_bytes_of_the_file(
    power_of_2: bool, rng: torch.Generator, tmp_path: Path
) -> None:
    """MTP module and experts included, where gate and up are whole blocks."""
    model = small_model(rng, moe_intermediate_size=128)
    save_hf(model, tmp_path / "fp8", "fp8", power_of_2=power_of_2)
    tokens = torch.randint(96, (2, 9), generator=rng)
    loaded = load_hf(tmp_path / "fp8", "fp8").eval()
    with WeightsInUse() as products, torch.no_grad():
        logits = loaded(tokens).logits
    assert products.found == weights_of_file(tmp_path / "fp8")
    assert len(products.found) == 3 * 5 + 2 + 2 * 4
    save_hf(loaded, tmp_path / "again", "fp8")  # with the same kind of scales
    assert contents(tmp_path / "again") == contents(tmp_path / "fp8")

    # With FP32 scales the loaded model is, bit for bit, the one that was saved.
    save_hf(model, tmp_path / "fp32", "float32")
    original = load_hf(tmp_path / "fp32", "fp8").eval()
    with torch.no_grad():  # what FP8 files keep in BF16
        for name, value in original.named_parameters():
            if name.endswith(("layernorm.weight", "norm.weight", "gate.weight", "embed_tokens.weight")):
                value.copy_(value.bfloat16())
        original.weights_changed()
        assert torch.equal(logits, original(tokens).logits) != power_of_2


CODES = torch.arange(1, 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn)  # all positive ones, ascending


@pytest.mark.parametrize("exponent", [-100, -20, -3, 0, 5, 110])
def test_codes_with_powers_of_two_are_never_rounded_again(exponent: int, rng: torch.Generator) -> None:
    """Whatever the largest code of a block. Its bytes stay if that is above 224; else codes double."""
    choice = [torch.randint(k, (128,), generator=rng) for k in range(1, len(CODES) + 1)]
    codes = torch.stack([CODES.view(torch.uint8)[c] for c in choice]).view(torch.float8_e4m3fn)[:, None]
    codes.view(torch.uint8)[:, 0, 7] = CODES.view(torch.uint8)  # block k has code k as its largest
    scales = torch.full((len(CODES), 1, 1), 2.0**exponent)
    values = ops.dequantize_blocks(codes, scales)
    again = ops.quantize_blocks(values, power_of_2=True)
    assert torch.equal(ops.dequantize_blocks(*again), values)
    kept = [same_bytes((codes[k], scales[k]), (again[0][k], again[1][k])) for k in range(len(CODES))]
    assert kept == (CODES.float() > 224).tolist()
    # A product is the same to the bit all the same.
    x = ops.quantize_tiles(torch.randn(3, 128, generator=rng))
    for k in range(0, len(CODES), 5):
        product = ops.gemm(*x, codes[k], scales[k], out_dtype=torch.float32)
        assert torch.equal(product, ops.gemm(*x, again[0][k], again[1][k], out_dtype=torch.float32))


def test_a_file_of_others_with_powers_of_two_is_computed_with_exactly(
    rng: torch.Generator, tmp_path: Path
) -> None:
    """Whatever their largest codes."""
    save_hf(small_model(rng, moe_intermediate_size=128), tmp_path / "a", "fp8", power_of_2=True)
    stored = tensors_of(tmp_path / "a")
    for name, codes in stored.items():
        if codes.dtype == torch.float8_e4m3fn:  # half the values, so that the largest code may be 120 to 224
            stored[name] = (codes.float() / 2).to(torch.float8_e4m3fn)
    rewrite(tmp_path / "a", stored)
    o_proj = load_hf(tmp_path / "a", "fp8").model.layers[0].self_attn.o_proj
    name = "model.layers.0.self_attn.o_proj.weight"
    of_file = stored[name], stored[name + "_scale_inv"]
    x = torch.randn(5, 128, generator=rng).bfloat16()
    with WeightsInUse() as products, torch.no_grad():
        assert torch.equal(o_proj(x), ops.gemm(*ops.quantize_tiles(x), *of_file))
    assert len(products.found) == 2  # the layer's codes are other bytes than the file's


def test_scales_stay_powers_of_two_when_training_goes_on(rng: torch.Generator, tmp_path: Path) -> None:
    save_hf(small_model(rng), tmp_path / "a", "fp8", power_of_2=True)
    model = load_hf(tmp_path / "a", "fp8")
    o_proj, tokens = model.model.layers[0].self_attn.o_proj, torch.randint(96, (1, 9), generator=rng)
    before = o_proj.product().codes.clone()
    model.loss(tokens, tokens).total.backward()
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    after = o_proj.product()
    assert not torch.equal(before.view(torch.uint8), after.codes.view(torch.uint8))
    assert (after.scales.frexp().mantissa == 0.5).all()


def test_fp32_scales_of_others_keep_their_codes(rng: torch.Generator) -> None:
    """Where the largest code of a block is 448; a scale moves by its last bit, or not at all."""
    codes = torch.randint(0, 0x7F, (4096, 1, 64), generator=rng, dtype=torch.uint8)
    codes[:, 0, 3] = 0x7E
    scales = (torch.rand(4096, 1, 1, generator=rng) + 0.01) * 2.0 ** torch.randint(-30, 9, (4096, 1, 1))
    again = ops.quantize_blocks(ops.dequantize_blocks(codes.view(torch.float8_e4m3fn), scales))
    assert torch.equal(again[0].view(torch.uint8), codes)
    moved = (again[1].view(torch.int32) - scales.view(torch.int32)).abs()
    assert set(moved.flatten().tolist()) == {0, 1}


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
    rewrite(tmp_path / "a", stored)
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
