"""What is wrong with a checkpoint is said in one sentence that names the file and the tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hf_models import config_of, small_model, tensors_of  # type: ignore[import-not-found]
from torch import Tensor

from deepseek_ext import load_hf, save_hf

Tensors = dict[str, Tensor]


@pytest.fixture
def folder(rng: torch.Generator, tmp_path: Path) -> Path:
    """A checkpoint of several files."""
    save_hf(small_model(rng), tmp_path / "a", "fp8", max_shard_size=300_000)
    return tmp_path / "a"


def change(folder: Path, edit: Callable[[Tensors], Any]) -> None:
    """Edits the tensors of a checkpoint, which becomes one file without an index."""
    tensors = tensors_of(folder)
    for file in folder.glob("model*"):
        file.unlink()
    edit(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError, match=r"^(load_hf|ModelConfig)") as caught:
        load_hf(folder, "fp32")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_misfit_is_named_at_once(folder: Path) -> None:
    prefix = "model.layers.1.mlp.experts.5"

    def edit(tensors: Tensors) -> None:
        del tensors["model.layers.0.self_attn.o_proj.weight"]
        del tensors[f"{prefix}.up_proj.weight_scale_inv"]
        tensors["model.layers.7.enorm.weight"] = torch.ones(4)
        tensors["model.norm.weight"] = torch.ones(127)
        tensors[f"{prefix}.down_proj.weight_scale_inv"] = torch.ones(2, 1)
        tensors["lm_head.weight"] = torch.zeros(96, 128, dtype=torch.int8)

    change(folder, edit)
    assert refusal(folder) == (
        f"load_hf: the tensors in {folder} do not fit its config.json: "
        f"2 missing: model.layers.0.self_attn.o_proj.weight, {prefix}.up_proj.weight_scale_inv; "
        "2 unexpected: model.layers.0.self_attn.o_proj.weight_scale_inv, model.layers.7.enorm.weight; "
        f"2 of another shape: model.layers.1.mlp.experts.5.down_proj.weight_scale_inv [2, 1] instead of "
        "[1, 1], model.norm.weight [127] instead of [128]; "
        "1 of a dtype that is not read: lm_head.weight I8"
    )


def test_long_lists_are_counted(folder: Path) -> None:
    change(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".experts." in name])
    message = refusal(folder)
    assert "48 missing: " in message
    assert message.endswith(" and 40 more")
    assert message.count(".experts.") == 8


def test_scales_of_weights_that_are_not_quantised_are_unexpected(folder: Path) -> None:
    name = "model.layers.0.self_attn.o_proj.weight"
    change(folder, lambda tensors: tensors.update({name: tensors[name].bfloat16()}))
    assert f"1 unexpected: {name}_scale_inv" in refusal(folder)


def test_norms_are_not_read_from_e4m3(folder: Path) -> None:
    def edit(tensors: Tensors) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)

    change(folder, edit)
    assert "1 of a dtype that is not read: model.norm.weight F8_E4M3" in refusal(folder)


@pytest.mark.parametrize(
    ("copy", "source"),
    [("embed_tokens", "model.embed_tokens"), ("shared_head.head", "lm_head")],
)
def test_copies_that_differ(copy: str, source: str, folder: Path) -> None:
    name = f"model.layers.2.{copy}.weight"

    def edit(tensors: Tensors) -> None:
        tensors[name] = tensors[name].clone()
        tensors[name][95, 127] += 1

    change(folder, edit)
    assert refusal(folder) == (
        f"load_hf: {name} differs from {source}.weight, of which it must be a copy; MTP modules share "
        "embedding and head with the main model"
    )


def test_mtp_layers_that_the_configuration_does_not_know(folder: Path) -> None:
    settings = config_of(folder)
    (folder / "config.json").write_text(json.dumps({**settings, "num_nextn_predict_layers": 0}))
    assert "unexpected: model.layers.2." in refusal(folder)
    (folder / "config.json").write_text(json.dumps({**settings, "num_nextn_predict_layers": 2}))
    assert "missing: model.layers.3." in refusal(folder)


def test_files_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == (
        f"load_hf: {tmp_path / 'none'} is no folder; name a local one that holds config.json"
    )
    gone = sorted(folder.glob("*.safetensors"))[1:3]
    for file in gone:
        file.unlink()
    index = folder / "model.safetensors.index.json"
    assert refusal(folder) == (
        f"load_hf: {index} names 2 files that are missing: {gone[0].name}, {gone[1].name}"
    )
    index.unlink()
    left = list(folder.glob("*.safetensors"))
    assert refusal(folder) == (
        f"load_hf: {folder} has {len(left)} safetensors files and no model.safetensors.index.json to say "
        "what is in them; get it from where they came from"
    )
    for file in left:
        file.unlink()
    assert refusal(folder) == (
        f"load_hf: {folder} holds neither model.safetensors.index.json nor model.safetensors; only "
        "safetensors are read"
    )
    (folder / "config.json").unlink()
    assert f"{folder / 'config.json'} does not exist" in refusal(folder)


def test_a_name_on_the_hub_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(Path("deepseek-ai/DeepSeek-V3")) == (
        "load_hf: deepseek-ai/DeepSeek-V3 is no folder; name a local one that holds config.json; nothing is "
        "downloaded here, `hf download deepseek-ai/DeepSeek-V3 --local-dir DIR` does that"
    )
    (tmp_path / "runs").mkdir()
    assert "hf download" not in refusal(Path("runs/first"))


def test_a_run_is_to_be_exported_first(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    assert f"holds a training run and no config.json; export it with `deepseek-ext export-hf {tmp_path}" in (
        refusal(tmp_path)
    )


@pytest.mark.parametrize("quantisation", [None, {"quant_method": "gptq"}])
def test_another_architecture_is_called_so_before_anything_else(quantisation: Any, tmp_path: Path) -> None:
    llama = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "quantization_config": quantisation,
    }
    (tmp_path / "config.json").write_text(json.dumps({**llama, "num_key_value_heads": 8}))
    assert refusal(tmp_path).startswith(
        f"load_hf: {tmp_path / 'config.json'}: this is not the configuration of a DeepSeek-V3 model: "
    )
    (tmp_path / "config.json").write_text("{}")
    assert "model_type is None" in refusal(tmp_path)


@pytest.mark.parametrize("text", ['{"hidden_size": ', "\xff\xfe", "[1, 2]", '"text"'])
def test_a_configuration_that_is_not_json(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text, encoding="latin-1")
    message = refusal(folder)
    assert message.startswith(f"ModelConfig.from_hf: {folder / 'config.json'} ")
    assert "JSON" in message


@pytest.mark.parametrize(
    "text",
    ['{"weight_map": ', "[1, 2]", "{}", '{"weight_map": {"a": 1}}', '{"weight_map": {}}', "\xff\xfe"],
)
def test_an_index_that_is_none(text: str, folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(text, encoding="latin-1")
    assert refusal(folder).startswith(f"load_hf: {index} ")


def test_an_index_cannot_point_out_of_its_folder(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    assert refusal(folder) == (
        f"load_hf: {index} must name files of its own folder, it names ../secret.safetensors"
    )


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_file_that_is_cut_short(keep: int, folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:keep])
    assert refusal(folder).startswith(f"load_hf: {file} is truncated or no safetensors file (")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "wide"}, "hidden_size must be a positive integer, got 'wide'"),
        ({"q_lora_rank": "64"}, "q_lora_rank must be a positive integer, got '64'"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps must be positive, got '1e-6'"),
        ({"rope_scaling": "yarn"}, "rotary settings must be an object, got 'yarn'"),
        (
            {"rope_scaling": {"type": "yarn", "factor": "2"}},
            "rope_scaling needs a positive 'factor', got '2'",
        ),
        (
            {
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 2,
                    "original_max_position_embeddings": 8,
                    "mscale": "1",
                }
            },
            "rope_scaling settings must be numbers, got {'mscale': '1'}",
        ),
    ],
)
def test_settings_of_the_wrong_kind(changes: dict[str, Any], message: str, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**config_of(folder), **changes}))
    assert message in refusal(folder)
