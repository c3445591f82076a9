"""The same weights give the same logits as transformers' DeepseekV3ForCausalLM, in FP32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepseek_ext.config import ModelConfig
from deepseek_ext.model import DeepseekV3

transformers = pytest.importorskip("transformers")

BASE = {
    "vocab_size": 256,
    "hidden_size": 96,
    "intermediate_size": 160,
    "moe_intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 40,
    "q_lora_rank": 56,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 12,
    "v_head_dim": 20,
    "n_routed_experts": 16,
    "n_shared_experts": 2,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.7,
    "max_position_embeddings": 128,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    "rope_interleave": True,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 5e3,
    "factor": 8.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 4,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "low-rank queries": {},
    "direct queries, one group": {
        "q_lora_rank": None,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": False,
    },
    "yarn, wide values": {"rope_parameters": YARN, "v_head_dim": 44, "topk_group": 3, "n_shared_experts": 1},
}


def build(changes: dict[str, Any], rng: torch.Generator) -> tuple[nn.Module, DeepseekV3]:
    """A model of transformers with one layer more than ours has, which serves as our MTP module's block."""
    settings = {**BASE, **changes}
    theirs_config = transformers.DeepseekV3Config(**settings, attn_implementation="eager")
    theirs = transformers.DeepseekV3ForCausalLM(theirs_config).eval()
    with torch.no_grad():
        for name, value in [*theirs.named_parameters(), *theirs.named_buffers()]:
            if name.endswith("e_score_correction_bias"):
                value.uniform_(-0.2, 0.2, generator=rng)
            elif name.endswith("mlp.gate.weight"):
                value.normal_(0, 0.2, generator=rng)  # scores must differ, or any routing would pass
            elif "norm" in name:
                value.uniform_(0.5, 1.5, generator=rng)
            elif value.dim() > 1:
                value.normal_(0, 0.08, generator=rng)
    config = ModelConfig.from_hf({**settings, "num_hidden_layers": 3, "num_nextn_predict_layers": 1})
    ours = DeepseekV3(config, precision="fp32").eval()
    extra = {
        name: torch.randn(value.shape, generator=rng) * 0.08
        for name, value in ours.state_dict().items()
        if any(part in name for part in ("enorm", "hnorm", "eh_proj", "shared_head"))
    }
    ours.load_state_dict({**renamed(theirs), **extra})
    return theirs, ours


def renamed(theirs: nn.Module) -> dict[str, Tensor]:
    state = theirs.state_dict()
    return {
        name.replace("experts.gate_up_proj", "experts.gate_up").replace("experts.down_proj", "experts.down")
        if "shared" not in name
        else name: value
        for name, value in state.items()
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_gradients_and_mtp_agree(variant: str, rng: torch.Generator) -> None:
    theirs, ours = build(VARIANTS[variant], rng)
    tokens = torch.randint(256, (2, 33), generator=rng)
    out = ours(tokens)

    layers, head = theirs.model.layers, theirs.lm_head
    mtp_block = layers[3]
    del layers[3]
    theirs.config.num_hidden_layers = 3
    wanted = theirs(tokens)
    assert_close(out.logits, wanted.logits)

    # The MTP module, written out around the same block.
    state = ours.state_dict()

    def norm(x: Tensor, name: str) -> Tensor:
        return nn.functional.rms_norm(x, x.shape[-1:], state[f"model.layers.3.{name}.weight"], 1e-6)

    hidden = theirs.model(tokens).last_hidden_state[:, :-1]
    embedded = theirs.model.embed_tokens(tokens[:, 1:])
    joined = torch.cat([norm(embedded, "enorm"), norm(hidden, "hnorm")], -1)
    x = joined @ state["model.layers.3.eh_proj.weight"].T
    mask = torch.full((32, 32), float("-inf")).triu(1)[None, None]
    rotary = theirs.model.rotary_emb(x, torch.arange(32)[None])
    x = mtp_block(x, attention_mask=mask, position_embeddings=rotary)
    wanted_mtp = head(norm(x[0] if isinstance(x, tuple) else x, "shared_head.norm"))
    assert_close(out.mtp_logits[0], wanted_mtp)

    grads = torch.randn(out.logits.shape, generator=rng), torch.randn(wanted_mtp.shape, generator=rng)
    torch.autograd.backward([out.logits, out.mtp_logits[0]], list(grads))
    layers.append(mtp_block)
    torch.autograd.backward([wanted.logits, wanted_mtp], list(grads))
    named = {name: p.grad for name, p in theirs.named_parameters()}
    compared = 0
    for name, value in ours.named_parameters():
        their_name = name.replace("experts.gate_up", "experts.gate_up_proj")
        if name.endswith("experts.down"):
            their_name = name + "_proj"
        if their_name in named:
            assert_close(value.grad, named[their_name], name)
            compared += 1
    assert compared == len(named)


def assert_close(got: Tensor | None, wanted: Tensor | None, name: str = "") -> None:
    """1e-4 of the tensor's size, element by element."""
    assert got is not None, name
    assert wanted is not None, name
    worst = (got - wanted).abs().max()
    assert worst <= 1e-4 * wanted.abs().max(), f"{name}: {worst} against {wanted.abs().max()}"
