"""Every parameter is drawn by a generator of its own."""

from __future__ import annotations

import hashlib

import torch

from deepseek_ext.config import ModelConfig
from deepseek_ext.model import DeepseekV3


def state(seed: int = 0, **changes: int) -> dict[str, torch.Tensor]:
    return DeepseekV3(ModelConfig.preset("tiny", **changes), seed=seed).state_dict()


def test_the_seed_decides_every_value() -> None:
    first, second, other = state(), state(), state(seed=1)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        if value.dim() > 1:
            assert not torch.equal(value, other[name]), name


def test_a_parameter_does_not_depend_on_the_others() -> None:
    alone = state()
    # Another depth and vocabulary: whatever keeps its name and shape keeps its values.
    among_others = state(num_hidden_layers=5, vocab_size=300, num_nextn_predict_layers=0)
    shared = [name for name in alone if alone[name].shape == getattr(among_others.get(name), "shape", None)]
    assert {"model.layers.2.mlp.experts.gate_up", "model.layers.0.mlp.gate_proj.weight"} <= set(shared)
    for name in shared:
        assert torch.equal(alone[name], among_others[name]), name


def test_an_expert_can_be_drawn_alone() -> None:
    name = "model.layers.1.mlp.experts.down"
    experts = state(seed=7)[name]
    digest = hashlib.sha256(f"7/{name}/5".encode()).digest()
    source = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    assert torch.equal(experts[5], torch.empty(experts.shape[1:]).normal_(0, 0.006, generator=source))


def test_matrices_are_normal_norms_one_and_biases_zero() -> None:
    for name, value in state().items():
        assert value.dtype == torch.float32, name
        if name.endswith("e_score_correction_bias"):
            assert (value == 0).all(), name
        elif value.dim() == 1:
            assert (value == 1).all(), name
        else:
            # The standard deviation of n draws is within 5 / sqrt(2 n) of the true one, relatively.
            assert abs(value.std() / 0.006 - 1) < 5 / (2 * value.numel()) ** 0.5, name


def test_names_are_those_of_the_released_checkpoints() -> None:
    names = set(state(num_nextn_predict_layers=2))
    attention = [
        "q_a_proj",
        "q_a_layernorm",
        "q_b_proj",
        "kv_a_proj_with_mqa",
        "kv_a_layernorm",
        "kv_b_proj",
        "o_proj",
    ]
    expected = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    for layer in range(5):
        prefix = f"model.layers.{layer}."
        expected |= {f"{prefix}self_attn.{name}.weight" for name in attention}
        expected |= {f"{prefix}{name}_layernorm.weight" for name in ("input", "post_attention")}
        ffn = "mlp" if layer == 0 else "mlp.shared_experts"
        expected |= {f"{prefix}{ffn}.{name}_proj.weight" for name in ("gate", "up", "down")}
        if layer > 0:
            expected |= {f"{prefix}mlp.gate.{name}" for name in ("weight", "e_score_correction_bias")}
            expected |= {f"{prefix}mlp.experts.{name}" for name in ("gate_up", "down")}
        if layer >= 3:
            expected |= {
                f"{prefix}{name}.weight" for name in ("enorm", "hnorm", "eh_proj", "shared_head.norm")
            }
    assert names == expected
