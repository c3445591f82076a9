"""Checkpoints in between, our model and transformers' are the same function, MTP modules included, in FP32.

No list of names maps one model to the other: weights go from ours to theirs and back as checkpoints, and so
do gradients, saved in the place of the weights and read by the other side.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hf_models import config_of, randomise, tensors_of  # type: ignore[import-not-found]
from torch import Tensor, nn

from deepseek_ext import DeepseekV3, ModelConfig, load_hf, save_hf

transformers = pytest.importorskip("transformers")
modeling_layers = pytest.importorskip("transformers.modeling_layers")

TOKENS = 21
SEEDS = range(10)


def random_config(seed: int) -> tuple[ModelConfig, float]:
    """A small model, and the middle of its router biases; over the seeds every feature is on and off."""
    draw = random.Random(seed)
    n_group = draw.choice([1, 2, 4])
    group_size = draw.choice([2, 3, 5])
    topk_group = draw.randint(1, n_group)
    layers = draw.choice([2, 3])
    yarn = {
        "type": "yarn",
        "factor": draw.choice([4.0, 40.0]),
        "original_max_position_embeddings": draw.choice([8, 16]),
        "beta_fast": draw.choice([2, 32]),
        # Without mscale_all_dim transformers puts 1 for mscale; released files have both equal.
        **draw.choice([{"mscale": 0.7, "mscale_all_dim": 1.0}, {"mscale": 1.0, "mscale_all_dim": 0.0}]),
    }
    config = ModelConfig(
        vocab_size=draw.choice([61, 128]),
        hidden_size=draw.choice([40, 72, 96]),
        num_hidden_layers=layers,
        first_k_dense_replace=seed % 3,
        intermediate_size=draw.choice([56, 160]),
        num_attention_heads=draw.choice([1, 3, 4]),
        q_lora_rank=None if seed % 2 else draw.choice([24, 50]),
        kv_lora_rank=draw.choice([36, 64]),
        qk_nope_head_dim=draw.choice([12, 24]),
        qk_rope_head_dim=draw.choice([4, 10]),
        v_head_dim=draw.choice([9, 20, 44]),
        max_position_embeddings=128,
        rope_theta=draw.choice([5e3, 1e4]),
        rope_scaling=yarn if seed % 4 >= 2 else None,
        n_routed_experts=n_group * group_size,
        n_shared_experts=draw.choice([1, 2]),
        moe_intermediate_size=draw.choice([20, 48]),
        # A single normed weight is 1 whatever the router says, and its gradient nothing but rounding.
        num_experts_per_tok=draw.randint(2, topk_group * group_size),
        n_group=n_group,
        topk_group=topk_group,
        norm_topk_prob=draw.random() < 0.5,
        routed_scaling_factor=draw.choice([1.0, 2.5]),
        num_nextn_predict_layers=1 + seed % 2,
        rms_norm_eps=1e-3
        if seed % 3 == 1
        else 1e-6,  # not of the latents' norms: so large it would show there
    )
    return config, draw.choice([0.0, -3.0])


def test_the_random_configurations_cover_every_feature() -> None:
    drawn = [random_config(seed) for seed in SEEDS]
    configs = [config for config, _ in drawn]
    assert {config.first_k_dense_replace for config in configs} == {0, 1, 2}
    assert {config.q_lora_rank is None for config in configs} == {True, False}
    assert {config.norm_topk_prob for config in configs} == {True, False}
    assert {config.n_group > 1 for config in configs} == {True, False}
    assert any(1 < config.topk_group < config.n_group for config in configs)
    assert {config.rope_scaling is None for config in configs} == {True, False}
    assert {bias for _, bias in drawn} == {0.0, -3.0}
    assert any(config.n_group > 1 and bias < -1 for config, bias in drawn)
    assert any(config.v_head_dim > config.qk_head_dim for config in configs)


class Theirs:
    """transformers' main model and its MTP modules, read from a checkpoint of ours."""

    def __init__(self, folder: Path, layers: int, depths: int, monkeypatch: pytest.MonkeyPatch) -> None:
        # transformers knows the MTP layer of the released model by its number, 61.
        known = [rf"model\.layers\.{layers + k}\." for k in range(depths)]
        cls = transformers.DeepseekV3ForCausalLM
        monkeypatch.setattr(cls, "_keys_to_ignore_on_load_unexpected", known)
        self.main, report = cls.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        self.mtp = modeling_layers.MtpModel.from_pretrained(self.main)
        assert len(self.mtp.layers) == depths

    def __call__(self, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits = self.main(tokens).logits
        hidden = self.main.model(tokens).last_hidden_state
        mtp_logits = []
        for k, layer in enumerate(self.mtp.layers, start=1):
            rows = tokens.shape[1] - k
            # Their chain of depths goes through each module's norm, the paper's does not (eq. 21 and 24).
            layer.use_post_norm = False
            positions = torch.arange(rows)[None]
            hidden = self.mtp.forward_layer(k - 1, hidden[:, :rows], positions, None, input_ids=tokens[:, k:])
            mtp_logits.append(self.main.lm_head(layer.post_norm(hidden)))
        return logits, mtp_logits

    def parameters(self) -> dict[str, nn.Parameter]:
        return {
            **{f"main.{name}": value for name, value in self.main.named_parameters()},
            **{f"mtp.{name}": value for name, value in self.mtp.named_parameters()},
        }


def assert_close(got: Tensor, wanted: Tensor, name: str) -> None:
    """1e-4 of the tensor's largest element, element by element."""
    worst = (got - wanted).abs().max()
    assert worst <= 1e-4 * wanted.abs().max(), f"{name}: {worst} against {wanted.abs().max()}"


@pytest.mark.parametrize("seed", SEEDS)
def test_logits_and_gradients_agree(
    seed: int, rng: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, bias = random_config(seed)
    ours = DeepseekV3(config, precision="fp32").eval()
    randomise(ours, rng, bias)
    shape = config.num_hidden_layers, config.num_nextn_predict_layers
    save_hf(ours, tmp_path / "ours", "float32", max_shard_size=50_000)
    theirs = Theirs(tmp_path / "ours", *shape, monkeypatch)

    tokens = torch.randint(config.vocab_size, (2, TOKENS), generator=rng)
    out = ours(tokens)
    logits, mtp_logits = theirs(tokens)
    assert_close(out.logits, logits, "logits")
    assert len(out.mtp_logits) == len(mtp_logits) == config.num_nextn_predict_layers
    for k, (got, wanted) in enumerate(zip(out.mtp_logits, mtp_logits, strict=True), start=1):
        assert_close(got, wanted, f"logits of MTP module {k}")

    weights = [torch.randn(value.shape, generator=rng) for value in [logits, *mtp_logits]]
    torch.autograd.backward([out.logits, *out.mtp_logits], list(weights))
    torch.autograd.backward([logits, *mtp_logits], weights)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    save_hf(ours, tmp_path / "gradients", "float32")
    ours_as_theirs = Theirs(tmp_path / "gradients", *shape, monkeypatch).parameters()
    for name, parameter in theirs.parameters().items():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert_close(ours_as_theirs[name], grad, f"gradient of {name}")

    # And back: what transformers saves, without MTP modules, we read as the model that it was.
    theirs.main.save_pretrained(tmp_path / "theirs")
    with pytest.warns(UserWarning, match="no tensor of its"):
        back = load_hf(tmp_path / "theirs", "fp32").eval()
    assert_close(back(tokens).logits, logits, "logits")


def test_a_depth_of_one_is_their_module_as_it_is(
    rng: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = random_config(0)
    ours = DeepseekV3(config, precision="fp32").eval()
    randomise(ours, rng)
    save_hf(ours, tmp_path / "a", "float32")
    theirs = Theirs(tmp_path / "a", config.num_hidden_layers, 1, monkeypatch)
    tokens = torch.randint(config.vocab_size, (1, TOKENS), generator=rng)
    hidden = theirs.main.model(tokens).last_hidden_state[:, :-1]
    positions = torch.arange(TOKENS - 1)[None]
    _, drafted, _ = theirs.mtp(tokens[:, 1:], hidden, None, positions, None)
    assert_close(ours(tokens).mtp_logits[0][:, -1:], drafted, "drafted logits")


def plainly_dequantised(folder: Path, target: Path) -> None:
    """An FP8 checkpoint as an FP32 one, in nothing but torch."""

    stored, values = tensors_of(folder), {}
    for name, tensor in stored.items():
        if name.endswith("_scale_inv"):
            continue
        value = tensor.float()
        if tensor.dtype == torch.float8_e4m3fn:
            scales = stored[name + "_scale_inv"].float()
            for i, rows in enumerate(value.split(128)):
                for j, block in enumerate(rows.split(128, 1)):
                    block *= scales[i, j]
        values[name] = value
    target.mkdir()
    safetensors.torch.save_file(values, target / "model.safetensors", metadata={"format": "pt"})
    settings = config_of(folder)
    settings.pop("quantization_config")
    (target / "config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8", "ue8m0"])
def test_every_dtype_holds_the_same_model_for_both(
    dtype: str, rng: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, _ = random_config(3)
    ours = DeepseekV3(config, precision="fp32")
    randomise(ours, rng)
    folder: Any = tmp_path / "saved"
    ue8m0 = dtype == "ue8m0"
    save_hf(ours, folder, "fp8" if ue8m0 else dtype, power_of_2=ue8m0)  # type: ignore[arg-type]
    loaded = load_hf(folder, "fp32").eval()
    if dtype != "bfloat16":  # transformers itself reads FP8 on a GPU only
        plainly_dequantised(folder, tmp_path / "plain")
        folder = tmp_path / "plain"
    theirs = Theirs(folder, config.num_hidden_layers, config.num_nextn_predict_layers, monkeypatch)
    tokens = torch.randint(config.vocab_size, (2, TOKENS), generator=rng)
    out = loaded(tokens)
    logits, mtp_logits = theirs(tokens)
    assert_close(out.logits, logits, "logits")
    for got, wanted in zip(out.mtp_logits, mtp_logits, strict=True):
        assert_close(got, wanted, "MTP logits")
