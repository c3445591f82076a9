"""What a layer keeps for its backward, counted, against the same layer in BF16 with ordinary autograd.

Two counts that must agree. One is of what autograd says it saves, item by item, storages once; weights, what
is derived from them, and the rotary factors, which all layers share, are told by identity. The other is of
every storage that the forward pass made and that is still alive after it, wherever it hangs: a tensor hidden
on a node's context would be in the second and not in the first.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deepseek_ext import ops
from deepseek_ext.config import ModelConfig
from deepseek_ext.model import DeepseekV3
from deepseek_ext.nn.block import Block
from deepseek_ext.nn.context import Context
from deepseek_ext.nn.linear import Derived
from deepseek_ext.nn.rope import rotate, rotations
from deepseek_ext.train import TrainConfig

B, T = 2, 96
SHAPES = {
    "recipe": lambda: TrainConfig().derived().model_config(),  # of `make pretrain`
    "small": lambda: ModelConfig.preset("small"),
}


def storage(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


@dataclass
class Born(TorchDispatchMode):
    """Notes every storage that an operator returns and that is not in `known`."""

    known: set[int]
    refs: dict[int, tuple[StorageWeakRef, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, Tensor) and storage(t) not in self.known:
                s = t.untyped_storage()
                self.refs[s._cdata] = StorageWeakRef(s), s.nbytes()
        return out

    def alive(self) -> int:
        gc.collect()
        return sum(size for ref, size in self.refs.values() if not ref.expired())


@dataclass
class Kept:
    """Bytes kept for backward, by item; and bytes of all storages that the forward pass left alive."""

    items: dict[str, int]
    alive: int

    @property
    def total(self) -> int:
        return sum(self.items.values())


def kept_by(layer: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor, weights: list[Tensor]) -> Kept:
    """Counts a call of layer(x); x and what it returns count only if they are saved."""
    known = {storage(w) for w in weights}
    saved: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        if storage(t) not in known:
            saved[storage(t)] = t
        return t

    with Born({*known, storage(x)}) as born, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = layer(x)
    items: dict[str, int] = {}
    for t in saved.values():
        name = f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}"
        items[name] = items.get(name, 0) + t.untyped_storage().nbytes()
    results = {storage(t): t.untyped_storage().nbytes() for t in out}
    only_returned = sum(size for key, size in results.items() if key not in saved)
    given = x.untyped_storage().nbytes() if storage(x) in saved else 0
    saved.clear()
    return Kept(items, born.alive() - only_returned + given)


class PlainBlock:
    """A block's mathematics as one writes it in BF16 with what torch.nn.functional offers.

    Shares the block's weights, as BF16 copies, so that its result can be compared.
    """

    def __init__(self, block: Block, config: ModelConfig) -> None:
        self.config = config
        self.bias = getattr(getattr(block.mlp, "gate", None), "e_score_correction_bias", None)
        self.w = {n: p.detach().bfloat16().requires_grad_() for n, p in block.named_parameters()}
        if "mlp.gate.weight" in self.w:
            self.w["mlp.gate.weight"] = self.w["mlp.gate.weight"].detach().float().requires_grad_()

    def norm(self, x: Tensor, name: str) -> Tensor:
        weight = self.w[f"{name}.weight"]
        return F.rms_norm(x, weight.shape, weight, self.config.rms_norm_eps)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"])

    def __call__(self, x: Tensor, rotation: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x, "input_layernorm"), rotation)
        h = self.norm(x, "post_attention_layernorm")
        if self.bias is None:
            return x + self.swiglu(h, "mlp")
        return x + self.experts(h.flatten(0, 1)).view(x.shape) + self.swiglu(h, "mlp.shared_experts")

    def attention(self, x: Tensor, rotation: Tensor) -> Tensor:
        c = self.config
        q_latent = self.norm(self.linear(x, "self_attn.q_a_proj"), "self_attn.q_a_layernorm")
        q = self.linear(q_latent, "self_attn.q_b_proj").unflatten(-1, (c.num_attention_heads, -1))
        q_nope, q_rope = q.split([c.qk_nope_head_dim, c.qk_rope_head_dim], -1)
        latent, k_rope = self.linear(x, "self_attn.kv_a_proj_with_mqa").split(
            [c.kv_lora_rank, c.qk_rope_head_dim], -1
        )
        kv = self.linear(self.norm(latent, "self_attn.kv_a_layernorm"), "self_attn.kv_b_proj")
        k_nope, v = kv.unflatten(-1, (c.num_attention_heads, -1)).split(
            [c.qk_nope_head_dim, c.v_head_dim], -1
        )
        k_rope = rotate(k_rope.unsqueeze(2), rotation).expand(*k_nope.shape[:-1], -1)
        q = torch.cat([q_nope, rotate(q_rope, rotation)], -1)
        k = torch.cat([k_nope, k_rope], -1)
        v = F.pad(v, (0, c.qk_head_dim - c.v_head_dim))  # else torch falls back to a matrix of scores
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)[..., : c.v_head_dim]
        return self.linear(out.transpose(1, 2).flatten(2), "self_attn.o_proj")

    def swiglu(self, x: Tensor, name: str) -> Tensor:
        hidden = F.silu(self.linear(x, f"{name}.gate_proj")) * self.linear(x, f"{name}.up_proj")
        return self.linear(hidden, f"{name}.down_proj")

    def experts(self, x: Tensor) -> Tensor:
        c = self.config
        logits = F.linear(x.float(), self.w["mlp.gate.weight"])
        weights, indices, load = ops.route(
            logits,
            self.bias,
            top_k=c.num_experts_per_tok,
            n_groups=c.n_group,
            topk_groups=c.topk_group,
            routed_scaling_factor=c.routed_scaling_factor,
        )
        order = indices.flatten().argsort(stable=True)
        token = order // c.num_experts_per_tok
        offs = load.cumsum(0, dtype=torch.int32)
        gate, up = F.grouped_mm(x[token], self.w["mlp.experts.gate_up"].mT, offs=offs).chunk(2, -1)
        rows = F.grouped_mm(F.silu(gate) * up, self.w["mlp.experts.down"].mT, offs=offs)
        rows = rows * weights.flatten()[order, None].to(rows.dtype)
        return torch.zeros_like(x).index_add(0, token, rows)


def layer_and_rival(
    shape: str, layer: int, precision: str
) -> tuple[Callable[[Tensor], tuple[Tensor, ...]], PlainBlock, list[Tensor], Tensor, Tensor]:
    """A block with its weights derived, the plain one, the weights of both, an input, and the rotation."""
    config = replace(SHAPES[shape](), num_hidden_layers=2, num_nextn_predict_layers=0, initializer_range=0.03)
    model = DeepseekV3(config, precision=precision, seed=1)
    block = model.model.layers[layer]
    plain = PlainBlock(block, config)
    generator = torch.Generator().manual_seed(2)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    x = torch.randn(B, T, config.hidden_size, generator=generator).to(dtype).requires_grad_()
    rotation = rotations(config, 0, T, x.device)
    context = Context(rotation)

    def run(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(t for t in block(x, context) if t is not None)

    run(x)  # derives codes and copies
    derived = [m._memo and m._memo.value for m in block.modules() if isinstance(m, Derived)]
    weights = [*block.parameters(), *block.buffers(), *tree_leaves(derived), *plain.w.values(), rotation]
    return run, plain, [w for w in weights if w is not None], x, rotation


def table(title: str, kept: Kept) -> str:
    rows = [f"  {name:32} {size / (B * T):8.0f}" for name, size in sorted(kept.items.items())]
    return "\n".join([f"{title}: {kept.total / (B * T):.0f} bytes a token", *rows])


@pytest.mark.parametrize("layer", [0, 1], ids=["dense", "moe"])
def test_the_rival_computes_the_same(layer: int) -> None:
    """In BF16 both, so that they differ by some ten roundings of 2^-9; a missing part would be half of it.

    A rounding now and then sends a token to another expert: not more than one in ten.
    """
    run, plain, _, x, rotation = layer_and_rival("small", layer, "bf16")
    ours, theirs = run(x)[0].float() - x.float(), plain(x, rotation).float() - x.float()
    near = (ours - theirs).norm(dim=-1) < 0.02 * ours.norm(dim=-1)
    assert near.float().mean() > (0.9 if layer else 0.999)


@pytest.mark.parametrize("precision", ["fp8", "bf16", "fp32"])
@pytest.mark.parametrize("layer", [0, 1], ids=["dense", "moe"])
def test_nothing_else_stays_alive(layer: int, precision: str) -> None:
    run, plain, weights, x, rotation = layer_and_rival("small", layer, precision)
    kept = kept_by(run, x, weights)
    assert kept.alive == kept.total
    theirs = kept_by(lambda x: (plain(x, rotation),), x.detach().bfloat16().requires_grad_(), weights)
    assert theirs.alive == theirs.total

    hidden: list[Tensor] = []

    def hoard(x: Tensor) -> tuple[Tensor, ...]:
        hidden.append(x * 2)
        return run(x)

    extra = kept_by(hoard, x, weights).alive - kept.total
    assert extra == x.untyped_storage().nbytes(), "the count finds a tensor that hides"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layer", [0, 1], ids=["dense", "moe"])
def test_an_fp8_layer_keeps_exactly_this(layer: int, shape: str) -> None:
    run, plain, weights, x, _ = layer_and_rival(shape, layer, "fp8")
    c = plain.config

    def tiles(width: int) -> int:
        return width + 4 * -(-width // 128)

    hidden, heads, top_k = c.hidden_size, c.num_attention_heads, c.num_experts_per_tok
    output = heads * c.v_head_dim
    latents = 2 * (c.q_lora_rank + c.kv_lora_rank + c.qk_rope_head_dim)
    norms = 2 * (2 * hidden) + 4 * 4  # the residual stream twice; rstd of these and of two latents
    attention = 4 * heads + output * 3 // 2 + 4 * -(-output // 128)  # logsumexp, E5M6 with scales
    if layer == 0:
        ffn = tiles(2 * c.intermediate_size)
    else:
        shared = tiles(2 * c.moe_intermediate_size)
        routed = tiles(hidden) + top_k * tiles(2 * c.moe_intermediate_size)
        routing = 4 * c.n_routed_experts + 4 * (4 * top_k)  # logits; weights, indices, rows, slots
        ffn = shared + routed + routing
    ends = 4 * c.n_routed_experts if layer else 0
    assert kept_by(run, x, weights).total == B * T * (norms + latents + attention + ffn) + ends


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layer", [0, 1], ids=["dense", "moe"])
def test_an_fp8_layer_keeps_less_than_half_of_bf16(shape: str, layer: int) -> None:
    """Even of the rival's 16-bit tensors alone: on the CPU torch's rms_norm saves FP32 ones beside them."""
    run, plain, weights, x, rotation = layer_and_rival(shape, layer, "fp8")
    ours = kept_by(run, x, weights)
    theirs = kept_by(lambda x: (plain(x, rotation),), x, weights)
    bf16 = sum(size for name, size in theirs.items.items() if name.startswith("bfloat16"))
    print(f"\n{shape}, {'MoE' if layer else 'dense'} layer")
    print(table("FP8", ours), table("BF16 with ordinary autograd", theirs), sep="\n")
    print(f"{ours.total / theirs.total:.3f}x, of its BF16 tensors alone {ours.total / bf16:.3f}x")
    assert ours.total <= 0.5 * bf16
