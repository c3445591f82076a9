"""Checkpoints in Hugging Face's format: what is written, and that what is written is read."""

from __future__ import annotations

import json
import os
import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hf_models import change_config, config_of, contents, small_model, tensors_of  # type: ignore[import-not-found]
from safetensors import SafetensorError
from torch import Tensor

import deepseek_ext
from deepseek_ext import DeepseekV3, ModelConfig, hf, hf_read, load_hf, ops, save_hf

DTYPES = ["float32", "bfloat16", "fp8"]


def assert_same_model(got: DeepseekV3, wanted: DeepseekV3) -> None:
    expected = wanted.state_dict()
    for name, value in got.state_dict().items():
        assert torch.equal(value, expected[name]), name
        assert value.dtype == torch.float32


def rounded(name: str, value: Tensor, dtype: str) -> Tensor:
    """What a weight of the model is after having been saved in a dtype."""
    if dtype == "float32" or name.endswith("e_score_correction_bias"):
        return value
    high = value.dim() == 1 or "eh_proj" in name or not ("proj" in name or "experts" in name)
    if dtype == "bfloat16" or high:
        return value.bfloat16().float()
    if name.endswith("gate_up"):  # gate and up have blocks of their own
        return torch.cat([rounded("proj", half, dtype) for half in value.chunk(2, 1)], 1)
    return ops.dequantize_blocks(*ops.quantize_blocks(value))


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_saved_is_loaded(dtype: str, rng: torch.Generator, tmp_path: Path) -> None:
    model = small_model(rng, num_nextn_predict_layers=2)
    save_hf(model, tmp_path / "a", dtype, max_shard_size=200_000)
    loaded = load_hf(tmp_path / "a", "fp32")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, rounded(name, model.state_dict()[name], dtype)), name
    assert loaded.config == ModelConfig.from_hf(model.config.to_hf())
    assert loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())

    save_hf(loaded, tmp_path / "b", dtype, max_shard_size=200_000)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_names_shapes_and_dtypes_are_the_released_ones(rng: torch.Generator, tmp_path: Path) -> None:
    model = small_model(rng, hidden_size=136, num_nextn_predict_layers=1)
    save_hf(model, tmp_path / "fp8", "fp8")
    stored = tensors_of(tmp_path / "fp8")
    shapes = {name: (tuple(value.shape), str(value.dtype)[6:]) for name, value in stored.items()}
    attention = {
        "q_a_proj": (64, 136),
        "q_b_proj": (192, 64),
        "kv_a_proj_with_mqa": (80, 136),
        "kv_b_proj": (256, 64),
        "o_proj": (136, 128),
    }
    wanted: dict[str, tuple[tuple[int, ...], str]] = {}

    def linear(name: str, rows: int, columns: int) -> None:
        wanted[f"{name}.weight"] = (rows, columns), "float8_e4m3fn"
        wanted[f"{name}.weight_scale_inv"] = (-(-rows // 128), -(-columns // 128)), "float32"

    def ffn(name: str, width: int) -> None:
        linear(f"{name}.gate_proj", width, 136)
        linear(f"{name}.up_proj", width, 136)
        linear(f"{name}.down_proj", 136, width)

    def plain(name: str, *shape: int) -> None:
        wanted[f"{name}.weight"] = shape, "bfloat16"

    for layer in range(3):
        prefix = f"model.layers.{layer}"
        plain(f"{prefix}.input_layernorm", 136)
        plain(f"{prefix}.post_attention_layernorm", 136)
        plain(f"{prefix}.self_attn.q_a_layernorm", 64)
        plain(f"{prefix}.self_attn.kv_a_layernorm", 64)
        for name, (rows, columns) in attention.items():
            linear(f"{prefix}.self_attn.{name}", rows, columns)
        if layer == 0:
            ffn(f"{prefix}.mlp", 256)
            continue
        plain(f"{prefix}.mlp.gate", 8, 136)
        wanted[f"{prefix}.mlp.gate.e_score_correction_bias"] = (8,), "float32"
        ffn(f"{prefix}.mlp.shared_experts", 72)
        for expert in range(8):
            ffn(f"{prefix}.mlp.experts.{expert}", 72)
    mtp = "model.layers.2"
    for name in ("model.embed_tokens", "lm_head", f"{mtp}.embed_tokens", f"{mtp}.shared_head.head"):
        plain(name, 96, 136)
    for name in ("model.norm", f"{mtp}.enorm", f"{mtp}.hnorm", f"{mtp}.shared_head.norm"):
        plain(name, 136)
    plain(f"{mtp}.eh_proj", 136, 272)
    assert shapes == wanted

    for dtype in ("float32", "bfloat16"):
        save_hf(model, tmp_path / dtype, dtype)
        other = tensors_of(tmp_path / dtype)
        assert other.keys() == {name for name in wanted if "scale_inv" not in name}
        for name, value in other.items():
            bias = name.endswith("e_score_correction_bias")
            assert value.dtype == (torch.float32 if bias else getattr(torch, dtype)), name


def test_the_parts_of_an_expert_are_its_own(rng: torch.Generator, tmp_path: Path) -> None:
    model = small_model(rng)
    save_hf(model, tmp_path / "a", "float32")
    stored, experts = tensors_of(tmp_path / "a"), model.model.layers[1].mlp.experts
    prefix = "model.layers.1.mlp.experts.5"
    assert torch.equal(stored[f"{prefix}.gate_proj.weight"], experts.gate_up[5, :72])
    assert torch.equal(stored[f"{prefix}.up_proj.weight"], experts.gate_up[5, 72:])
    assert torch.equal(stored[f"{prefix}.down_proj.weight"], experts.down[5])


def test_the_configuration_says_what_was_written(rng: torch.Generator, tmp_path: Path) -> None:
    model = small_model(rng)
    for dtype in DTYPES:
        save_hf(model, tmp_path / dtype, dtype)
    save_hf(model, tmp_path / "ue8m0", "fp8", power_of_2=True)
    blocks = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }
    found = {name: config_of(tmp_path / name) for name in (*DTYPES, "ue8m0")}
    assert found["float32"]["torch_dtype"] == "float32"
    assert {found[name]["torch_dtype"] for name in ("bfloat16", "fp8", "ue8m0")} == {"bfloat16"}
    assert "quantization_config" not in found["float32"]
    assert "quantization_config" not in found["bfloat16"]
    assert found["fp8"]["quantization_config"] == blocks
    assert found["ue8m0"]["quantization_config"] == {**blocks, "scale_fmt": "ue8m0"}
    for settings in found.values():
        assert settings["architectures"] == ["DeepseekV3ForCausalLM"]
        assert settings["model_type"] == "deepseek_v3"
        assert settings["num_nextn_predict_layers"] == 1


def test_files_are_cut_at_the_given_size_and_indexed(rng: torch.Generator, tmp_path: Path) -> None:
    limit = 150_000
    save_hf(small_model(rng), tmp_path / "a", "fp8", max_shard_size=limit)
    index = json.loads((tmp_path / "a" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "a").glob("*.safetensors"))
    assert len(files) > 3
    assert [file.name for file in files] == [
        f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)
    ]
    total = 0
    for file in files:
        tensors = safetensors.torch.load_file(file)
        assert sum(tensor.nbytes for tensor in tensors.values()) <= limit
        total += sum(tensor.nbytes for tensor in tensors.values())
        for name in tensors:
            assert index["weight_map"][name] == file.name
            if name.endswith("_scale_inv"):
                assert name.removesuffix("_scale_inv") in tensors
    assert index["metadata"]["total_size"] == total
    assert index["weight_map"].keys() == tensors_of(tmp_path / "a").keys()


def test_a_save_holds_one_file_in_memory_and_a_load_one_tensor(
    rng: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by what is handed over; what the allocator does with it is torch's."""
    limit, model = 150_000, small_model(rng)
    alive: list[Any] = []

    def save_file(tensors: dict[str, Tensor], *args: Any, **kwargs: Any) -> None:
        assert not any(reference() is not None for reference in alive), "tensors of the file before are alive"
        assert sum(tensor.untyped_storage().nbytes() for tensor in tensors.values()) <= limit
        alive.extend(weakref.ref(tensor) for tensor in tensors.values())
        safetensors.torch.save_file(tensors, *args, **kwargs)

    monkeypatch.setattr(hf, "save_file", save_file)
    save_hf(model, tmp_path / "a", "float32", max_shard_size=limit)
    assert len(alive) > 10

    opened: list[Path] = []
    read = hf_read._read

    def one_at_a_time(reader: Any, entry: Any, target: Tensor, scales: Tensor | None) -> None:
        assert len(opened) == 1
        read(reader, entry, target, scales)

    class Opened:
        def __init__(self, file: Path, framework: str) -> None:
            self.inner, self.file = safetensors.safe_open(file, framework=framework), file

        def __enter__(self) -> Any:
            opened.append(self.file)
            return self.inner.__enter__()

        def __exit__(self, *reason: Any) -> None:
            opened.remove(self.file)
            self.inner.__exit__(*reason)

    monkeypatch.setattr(hf_read, "_read", one_at_a_time)
    monkeypatch.setattr(hf_read, "safe_open", Opened)
    assert_same_model(load_hf(tmp_path / "a", "fp32"), model)


def test_without_mtp_modules(rng: torch.Generator, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    model = small_model(rng).eval()
    save_hf(model, tmp_path / "a", "float32", include_mtp=False)
    assert config_of(tmp_path / "a")["num_nextn_predict_layers"] == 0
    assert not any("layers.2" in name for name in tensors_of(tmp_path / "a"))
    loaded = load_hf(tmp_path / "a", "fp32").eval()
    assert loaded.config.num_nextn_predict_layers == 0
    assert not recwarn.list
    tokens = torch.randint(96, (2, 9), generator=rng)
    assert torch.equal(loaded(tokens).logits, model(tokens, use_mtp=False).logits)

    change_config(tmp_path / "a", num_nextn_predict_layers=1)
    with pytest.warns(UserWarning, match="no tensor of its 1 MTP modules, so the model has none") as caught:
        assert load_hf(tmp_path / "a", "fp32").config.num_nextn_predict_layers == 0
    assert caught[0].filename == __file__


def test_the_loaded_model_is_like_one_that_was_made(rng: torch.Generator, tmp_path: Path) -> None:
    """Buffers that no checkpoint holds included, and what precision derives from the weights made anew."""
    model = small_model(rng, "fp8").eval()
    save_hf(model, tmp_path / "a", "float32")
    override = {"model.layers.0.self_attn.o_proj": "bf16"}
    loaded = load_hf(tmp_path / "a", "fp8", precision_overrides=override, device="cpu").eval()
    made = DeepseekV3(loaded.config, seed=1)
    assert {name for name, _ in loaded.named_buffers()} == {name for name, _ in made.named_buffers()}
    persistent = made.state_dict()
    for name, buffer in made.named_buffers():
        if name not in persistent:
            assert torch.equal(dict(loaded.named_buffers())[name], buffer), name
    assert loaded.precision == "fp8"
    assert loaded.model.layers[0].self_attn.o_proj.precision == "bf16"
    tokens = torch.randint(96, (2, 9), generator=rng)
    model.model.layers[0].self_attn.o_proj.precision = "bf16"
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_float_is_read_from_one_file_without_an_index(
    dtype: torch.dtype, rng: torch.Generator, tmp_path: Path
) -> None:
    model = small_model(rng)
    save_hf(model, tmp_path / "a", "float32")
    folder = tmp_path / "b"
    folder.mkdir()
    stored = {name: value.to(dtype) for name, value in tensors_of(tmp_path / "a").items()}
    stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)  # as old checkpoints have it
    safetensors.torch.save_file(stored, folder / "model.safetensors")
    (folder / "config.json").write_text((tmp_path / "a" / "config.json").read_text())
    loaded = load_hf(folder, "fp32")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name].to(dtype).float()), name


def test_a_folder_with_files_is_refused(rng: torch.Generator, tmp_path: Path) -> None:
    model = small_model(rng)
    (tmp_path / "empty").mkdir()
    save_hf(model, tmp_path / "empty")
    before = contents(tmp_path / "empty")
    with pytest.raises(ValueError, match="empty is not empty; name a folder that is new or empty"):
        save_hf(model, tmp_path / "empty", "float32")
    assert contents(tmp_path / "empty") == before
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is not empty"):
        save_hf(model, tmp_path / "file")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "fp16"}, "dtype must be one of bfloat16, float32, fp8, got 'fp16'"),
        ({"power_of_2": True}, 'power_of_2 is about scales, which dtype "bfloat16" has none of; write "fp8"'),
        ({"max_shard_size": 0}, "max_shard_size must be a positive number of bytes, got 0"),
    ],
)
def test_arguments_that_do_not_fit(
    arguments: dict[str, Any], message: str, rng: torch.Generator, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        save_hf(small_model(rng), tmp_path / "a", **arguments)
    assert not (tmp_path / "a").exists()


def test_a_model_without_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="on the meta device and has no values to save"):
        save_hf(DeepseekV3(ModelConfig.preset("tiny"), device="meta"), tmp_path / "a")


@pytest.mark.parametrize("existed", [False, True])
def test_a_save_that_fails_leaves_nothing(
    existed: bool, rng: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a"
    if existed:
        folder.mkdir()

    def full_disk(tensors: dict[str, Tensor], file: Path, **kwargs: Any) -> None:
        if "00003" in file.name:
            file.write_bytes(b"half")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        safetensors.torch.save_file(tensors, file, **kwargs)

    monkeypatch.setattr(hf, "save_file", full_disk)
    with pytest.raises(OSError, match=r"model-00003-of-\d+.safetensors cannot be written .*No space left"):
        save_hf(small_model(rng), folder, max_shard_size=150_000)
    assert folder.exists() == existed
    assert not existed or not list(folder.iterdir())


def test_a_save_that_is_killed_never_looks_complete(
    rng: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is on the disk when a flush is asked for: without config.json, until all else is there."""
    model, folder, seen = small_model(rng), tmp_path / "a", []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        names = {file.name for file in folder.iterdir()}
        complete = "config.json" in names
        seen.append(complete)
        if complete:
            assert_same_model(load_hf(folder, "fp32"), model)
        else:
            with pytest.raises(ValueError, match=r"config.json does not exist"):
                load_hf(folder, "fp32")

    monkeypatch.setattr(os, "fsync", fsync)
    save_hf(model, folder, "float32", max_shard_size=300_000)
    assert seen[-1]
    assert seen.count(False) == len(list(folder.glob("*.safetensors"))) + 2  # index, temporary config.json


def test_the_package_offers_both() -> None:
    assert deepseek_ext.load_hf is hf.load_hf
    assert deepseek_ext.save_hf is hf.save_hf


def test_the_example_of_the_documentation_runs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    variables: dict[str, Any] = {}
    exec(compile(code, "docs/checkpoints.md", "exec"), variables)
    assert_same_model(variables["again"], load_hf(f"{variables['folder']}/fp8", "fp32"))


def test_transformers_reads_the_configuration_of_every_dtype(rng: torch.Generator, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = small_model(rng)
    for dtype in DTYPES:
        save_hf(model, tmp_path / dtype, dtype)
        theirs = transformers.AutoConfig.from_pretrained(tmp_path / dtype)
        assert isinstance(theirs, transformers.DeepseekV3Config)
        assert theirs.dtype == (torch.float32 if dtype == "float32" else torch.bfloat16)
        if dtype == "fp8":
            method = transformers.quantizers.auto.AutoQuantizationConfig.from_dict(theirs.quantization_config)
            assert isinstance(method, transformers.FineGrainedFP8Config)
            assert list(method.weight_block_size) == [128, 128]


def test_transformers_reads_fp8_where_accelerate_is_installed(rng: torch.Generator, tmp_path: Path) -> None:
    """As BF16, for want of a GPU; sides must be multiples of 128, or below, for it divides them equally."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = small_model(rng, moe_intermediate_size=128, num_attention_heads=8)
    save_hf(model, tmp_path / "a", "fp8", include_mtp=False)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a").state_dict()
    for name, value in load_hf(tmp_path / "a", "fp32").state_dict().items():
        of_experts = name.endswith(("experts.gate_up", "experts.down"))
        got = theirs[name + "_proj" if of_experts else name]
        assert torch.equal(got, value.to(got.dtype)), name
