"""Tiny replicas of released checkpoints: their config.json with smaller sizes, files made without us."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hf_models import YARN, contents, randomise, tensors_of  # type: ignore[import-not-found]
from torch import Tensor

from deepseek_ext import load_hf, save_hf

transformers = pytest.importorskip("transformers")

FP8 = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
COMMON = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "ep_size": 1,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "moe_layer_freq": 1,
    "norm_topk_prob": True,
    "pretraining_tp": 1,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    # What is smaller here:
    "hidden_size": 144,
    "intermediate_size": 200,
    "kv_lora_rank": 64,
    "moe_intermediate_size": 40,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "vocab_size": 80,
}
V3 = {
    **COMMON,
    "model_type": "deepseek_v3",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 163840,
    "n_group": 8,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 48,
    "quantization_config": FP8,
    "rms_norm_eps": 1e-6,
    "rope_scaling": YARN,
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "topk_group": 4,
}
MOONLIGHT = {
    **COMMON,
    "model_type": "deepseek_v3",
    "aux_loss_alpha": 0.001,
    "bos_token_id": 70,
    "eos_token_id": 71,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 8192,
    "n_group": 1,
    "n_routed_experts": 12,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "num_nextn_predict_layers": 0,
    "q_lora_rank": None,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.446,
    "seq_aux": True,
    "topk_group": 1,
}
KIMI = {
    **COMMON,
    "model_type": "kimi_k2",
    "aux_loss_alpha": 0.001,
    "bos_token_id": 70,
    "eos_token_id": 71,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 131072,
    "n_group": 1,
    "n_routed_experts": 24,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "num_nextn_predict_layers": 0,
    "q_lora_rank": 48,
    "quantization_config": FP8,
    "rms_norm_eps": 1e-6,
    "rope_scaling": {**YARN, "beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0},
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "seq_aux": True,
    "topk_group": 1,
}
RELEASED: dict[str, dict[str, Any]] = {
    "V3": V3,
    "V3 in BF16": {**V3, "quantization_config": None},
    "V3.1": {**V3, "quantization_config": {**FP8, "scale_fmt": "ue8m0"}},
    "Moonlight": MOONLIGHT,
    "Kimi K2": KIMI,
}
HIGH_PRECISION = ("embed_tokens", "lm_head", "mlp.gate.", "norm", "eh_proj", "shared_head", "bias")


def block_quantised(weight: Tensor, ue8m0: bool) -> tuple[Tensor, Tensor]:
    """As the released inference code has it: one scale amax / 448 a block, codes by division."""
    codes = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    scales = torch.empty(-(-weight.shape[0] // 128), -(-weight.shape[1] // 128))
    for i, rows in enumerate(weight.split(128)):
        for j, block in enumerate(rows.split(128, 1)):
            scale = block.abs().max() / 448
            scales[i, j] = scale = scale.log2().ceil().exp2() if ue8m0 else scale
            codes[128 * i : 128 * i + 128, 128 * j : 128 * j + 128] = (block / scale).to(torch.float8_e4m3fn)
    return codes, scales


def build(settings: dict[str, Any], folder: Path, rng: torch.Generator) -> torch.nn.Module:
    """Writes the replica, and returns transformers' model with the values that its files hold."""
    plain = {key: value for key, value in settings.items() if key not in ("auto_map", "quantization_config")}
    # A copy: transformers writes into the rotary settings that it is given.
    config = transformers.DeepseekV3Config(**deepcopy({**plain, "model_type": "deepseek_v3"}))
    theirs = transformers.DeepseekV3ForCausalLM(config).eval()
    randomise(theirs, rng)
    theirs.save_pretrained(folder / "main")
    weights = {
        name: value.float() if name.endswith("bias") else value.bfloat16()
        for name, value in tensors_of(folder / "main").items()
    }
    if settings["num_nextn_predict_layers"]:  # the last layer once more, as the block of an MTP module
        block = {name: value for name, value in weights.items() if name.startswith("model.layers.2.")}
        weights |= {name.replace("layers.2.", "layers.3."): value.clone() for name, value in block.items()}
        weights["model.layers.3.embed_tokens.weight"] = weights["model.embed_tokens.weight"].clone()
        weights["model.layers.3.shared_head.head.weight"] = weights["lm_head.weight"].clone()
        for name in ("enorm", "hnorm", "shared_head.norm"):
            weights[f"model.layers.3.{name}.weight"] = torch.rand(144, generator=rng).bfloat16()
        weights["model.layers.3.eh_proj.weight"] = torch.randn(144, 288, generator=rng).bfloat16()

    stored: dict[str, Tensor] = {}
    quantisation = settings.get("quantization_config")
    for name, value in weights.items():
        if quantisation and not any(part in name for part in HIGH_PRECISION):
            codes, scales = block_quantised(value.float(), "scale_fmt" in quantisation)
            stored[name], stored[f"{name}_scale_inv"] = codes, scales
            whole = scales.repeat_interleave(128, 0)[: value.shape[0]].repeat_interleave(128, 1)
            weights[name] = codes.float() * whole[:, : value.shape[1]]
        else:
            stored[name] = value
    write(folder / "released", settings, stored)
    write(
        folder / "plain",
        {**plain, "num_nextn_predict_layers": 0, "model_type": "deepseek_v3"},
        {name: value.float() for name, value in weights.items() if "layers.3." not in name},
    )
    return transformers.DeepseekV3ForCausalLM.from_pretrained(
        folder / "plain", dtype=torch.float32, attn_implementation="eager"
    )


def write(folder: Path, settings: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Three files with the tensors dealt out one by one, so that scales are not beside their codes."""
    folder.mkdir()
    files = [f"model-{n:05d}-of-000003.safetensors" for n in (1, 2, 3)]
    weight_map = {name: files[n % 3] for n, name in enumerate(tensors)}
    for file in files:
        there = {name: tensors[name] for name in tensors if weight_map[name] == file}
        safetensors.torch.save_file(there, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    (folder / "config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("release", RELEASED)
def test_it_loads_and_computes_what_transformers_does(
    release: str, rng: torch.Generator, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    settings = RELEASED[release]
    theirs = build(settings, tmp_path, rng)
    model = load_hf(tmp_path / "released", "fp32").eval()
    assert not [warning for warning in recwarn.list if "load_hf" in str(warning.message)]
    assert model.config.num_nextn_predict_layers == settings["num_nextn_predict_layers"]
    tokens = torch.randint(80, (2, 30), generator=rng)
    got, wanted = model(tokens).logits, theirs(tokens).logits
    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()

    for precision in ("fp8", "bf16"):
        assert load_hf(tmp_path / "released", precision).eval()(tokens).logits.isfinite().all()


@pytest.mark.parametrize("release", ["V3", "V3.1"])
def test_saving_a_released_model_keeps_its_values(release: str, rng: torch.Generator, tmp_path: Path) -> None:
    """In the kind of scales that it came with; after that its bytes stay too."""
    build(RELEASED[release], tmp_path, rng)
    model, power_of_2 = load_hf(tmp_path / "released", "fp8"), release == "V3.1"
    for name in ("a", "b"):
        save_hf(model, tmp_path / name, "fp8", power_of_2=power_of_2)
        values = model.state_dict()
        model = load_hf(tmp_path / name, "fp8")
        for key, value in model.state_dict().items():
            assert torch.equal(value, values[key]), key
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
