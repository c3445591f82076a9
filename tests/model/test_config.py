"""Presets, Hugging Face's configurations, and the configurations that are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hf_models import YARN  # type: ignore[import-not-found]

from deepseek_ext.config import ModelConfig
from deepseek_ext.model import DeepseekV3

# Keys of the released config.json, in the old spelling of the rotary settings.
RELEASED: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "v_head_dim": 128,
    "vocab_size": 129280,
}


def parameters(model: DeepseekV3, *, mtp: bool) -> int:
    first = model.config.num_hidden_layers
    module = tuple(f"model.layers.{first + k}." for k in range(model.config.num_nextn_predict_layers))
    return sum(p.numel() for n, p in model.named_parameters() if n.startswith(module or ("-",)) == mtp)


@pytest.mark.parametrize(
    ("preset", "main", "mtp"),
    [("deepseek-v3", 671.026e9, 11.61e9), ("deepseek-v3-16b", 15.706e9, 0), ("small", 76e6, 15e6)],
)
def test_presets_have_the_stated_number_of_parameters(preset: str, main: float, mtp: float) -> None:
    model = DeepseekV3(ModelConfig.preset(preset), device="meta")
    # 15 M and 76 M are stated to a million, the published figures to all their digits.
    assert parameters(model, mtp=False) == pytest.approx(main, rel=1e-2 if preset == "small" else 1e-4)
    assert parameters(model, mtp=True) == pytest.approx(mtp, rel=5e-2 if preset == "small" else 1e-3)


def test_the_released_configuration_is_the_preset(tmp_path: Path) -> None:
    preset = ModelConfig.preset("deepseek-v3")
    assert ModelConfig.from_hf(RELEASED) == preset
    (tmp_path / "config.json").write_text(json.dumps({**RELEASED, "rope_scaling": YARN}), encoding="utf-8")
    extended = ModelConfig.from_hf(tmp_path)
    assert extended == ModelConfig.preset("deepseek-v3", rope_scaling=YARN)
    assert extended != preset


def test_both_spellings_of_the_rotary_settings_mean_the_same() -> None:
    old = {**RELEASED, "rope_theta": 5e5, "rope_scaling": YARN}
    plain = {key: value for key, value in YARN.items() if key != "type"}
    new = {key: value for key, value in RELEASED.items() if key != "rope_theta"}
    new["rope_parameters"] = {"rope_type": "yarn", "rope_theta": 5e5, **plain}
    assert ModelConfig.from_hf(new) == ModelConfig.from_hf(old)
    new["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5}
    assert ModelConfig.from_hf(new) == ModelConfig.from_hf({**RELEASED, "rope_theta": 5e5})


@pytest.mark.parametrize("preset", ["deepseek-v3", "deepseek-v3-16b", "tiny"])
def test_what_is_written_for_hugging_face_is_read_back(preset: str) -> None:
    config = ModelConfig.preset(preset, rope_scaling=YARN, balance_alpha=0.25, mtp_weight=0.1)
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == replace(
        config, initializer_range=ModelConfig().initializer_range
    )


def test_the_released_settings_are_what_is_written_for_the_preset() -> None:
    written = ModelConfig.preset("deepseek-v3").to_hf()
    not_of_the_model = {"bos_token_id", "ep_size", "initializer_range"}
    for key in RELEASED.keys() - not_of_the_model:
        assert written[key] == RELEASED[key], key


def test_transformers_reads_what_is_written() -> None:
    transformers = pytest.importorskip("transformers")
    config = ModelConfig.preset("deepseek-v3", rope_scaling=YARN, rope_theta=5e3)
    theirs = transformers.DeepseekV3Config(**config.to_hf())
    assert theirs.rope_parameters["rope_theta"] == 5e3
    assert theirs.rope_parameters["rope_type"] == "yarn"
    assert theirs.num_mtp_layers == 1
    assert ModelConfig.from_hf(theirs.to_dict()) == config
    renamed = {"model_type": "deepseek_v3", "num_mtp_layers": 3}
    assert ModelConfig.from_hf(renamed).num_nextn_predict_layers == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be a positive integer, got 0"),
        ({"hidden_size": 64.0}, "hidden_size must be a positive integer, got 64.0"),
        ({"n_shared_experts": -1}, "n_shared_experts must be an integer >= 0, got -1"),
        ({"q_lora_rank": 0}, "write None to project queries directly"),
        ({"qk_rope_head_dim": 15}, "qk_rope_head_dim must be even.* got 15; write 16"),
        ({"first_k_dense_replace": 4}, "exceeds num_hidden_layers .3.; write at most 3"),
        ({"n_routed_experts": 6}, r"multiple of n_group .4.; write an n_group out of \[1, 2, 3, 6\]"),
        ({"topk_group": 5}, "topk_group .5. exceeds n_group .4.; write at most 4"),
        ({"num_experts_per_tok": 5}, "exceeds the 4 experts .* raise topk_group or write at most 4"),
        ({"rope_theta": 0.0}, "rope_theta must be positive"),
        ({"initializer_range": -1.0}, "initializer_range must not be negative"),
        ({"balance_alpha": float("nan")}, "balance_alpha must not be negative, got nan"),
        ({"rope_scaling": {"type": "linear"}}, "type must be .yarn., got 'linear'; write None"),
        (
            {"rope_scaling": {**YARN, "attention_factor": 2.0}},
            "unknown settings .'attention_factor'.; choose",
        ),
        ({"rope_scaling": {"type": "yarn"}}, "needs a positive 'factor', got None"),
    ],
)
def test_impossible_configurations_name_the_remedy(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.preset("tiny", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported"),
        ({"tie_word_embeddings": True}, "embedding and head are separate"),
        ({"num_key_value_heads": 8}, "every head has its own keys"),
        ({"scoring_func": "softmax"}, "router scores are sigmoids"),
    ],
)
def test_foreign_configurations_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_hf({**RELEASED, **changes})


LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_key_value_heads": 8}


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, "model_type is None and architectures None"),
        (LLAMA, r"model_type is 'llama' and architectures \['LlamaForCausalLM'\]"),
        ({"architectures": "DeepseekV3ForCausalLM"}, "model_type is None and architectures 'Deep"),
        ({**RELEASED, "architectures": ["DeepseekV2ForCausalLM"]}, r"\['DeepseekV2ForCausalLM'\]"),
    ],
)
def test_other_architectures_are_called_so_first(settings: dict[str, Any], found: str) -> None:
    wanted = f"not the configuration of a DeepSeek-V3 model: .*{found}.*; .deepseek_v3. or .* is read"
    with pytest.raises(ValueError, match=wanted):
        ModelConfig.from_hf(settings)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no preset is called 'huge'; choose from"):
        ModelConfig.preset("huge")
    with pytest.raises(ValueError, match=r"config.json does not exist"):
        ModelConfig.from_hf(tmp_path)
    with pytest.raises(ValueError, match="DeepseekV3: config must be a ModelConfig, got str; make one"):
        DeepseekV3("tiny")
    with pytest.raises(ValueError, match="precision must be one of fp8, bf16, fp32, got 'fp16'"):
        DeepseekV3(ModelConfig.preset("tiny"), precision="fp16")
    with pytest.raises(ValueError, match="pattern 'layers-9' matches no layer"):
        DeepseekV3(ModelConfig.preset("tiny"), precision_overrides={"layers-9": "bf16"})
