"""Section 3.3.3 and 3.2.3: what each cache and each recomputation saves between forward and backward.

Of one MoE block of the `small` preset. "Before" are the 16-bit tensors that ordinary autograd keeps, by their
shapes; "after" is what the block keeps, whose sum must equal what autograd says that it saved.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..config import ModelConfig
from ..model import DeepseekV3
from ..nn.block import Block
from ..nn.context import Context
from ..nn.rope import rotations
from ..reference.formats import TILE
from .claim import Claim, Finding, Settings
from .figures import COLOURS, GREY, Axes

_BF16, _FP32 = 2, 4


def expected(c: ModelConfig) -> dict[str, tuple[float, float]]:
    """Bytes a token, before and after, by what is kept."""

    def tiles(width: int) -> float:
        return width + _FP32 * -(-width // TILE)

    hidden, heads, top_k, width = (
        c.hidden_size,
        c.num_attention_heads,
        c.num_experts_per_tok,
        c.moe_intermediate_size,
    )
    assert c.q_lora_rank is not None
    latents = c.q_lora_rank + c.kv_lora_rank
    output = heads * c.v_head_dim
    passes = top_k + c.n_shared_experts  # SwiGLUs that a token goes through
    qkv = heads * (2 * c.qk_head_dim + c.v_head_dim)
    # Residual stream, latents and shared key; a number a row of each norm; logsumexp; routing.
    needed = (
        _BF16 * (2 * hidden + latents + c.qk_rope_head_dim)
        + _FP32 * (4 + heads)
        + _FP32 * (c.n_routed_experts + 4 * top_k)
    )
    return {
        "queries, keys, values: projected up again": (_BF16 * qkv, 0),
        "norms' outputs: computed again": (_BF16 * (2 * hidden + latents), 0),
        "attention's output: E5M6": (_BF16 * output, 1.5 * output + _FP32 * -(-output // TILE)),
        "experts' inputs: E4M3, one row a token": (_BF16 * top_k * hidden, tiles(hidden)),
        "gate and up: E4M3": (_BF16 * 2 * width * passes, tiles(2 * width) * passes),
        "SwiGLU's factors and output: computed again": (_BF16 * 2 * width * passes, 0),
        "experts' outputs: weighted before": (_BF16 * top_k * hidden, 0),
        "everything else": (needed, needed),
    }


def counted(block: Block, config: ModelConfig, sequences: int, length: int) -> int:
    """Bytes that a forward pass saves for backward, each storage once.

    Weights and what is derived from them are told by being saved by two passes alike.
    """
    context = Context(rotations(config, 0, length, torch.device("cpu")))
    saved: list[dict[int, int]] = []
    alive = []
    block(torch.zeros(1, length, config.hidden_size, dtype=torch.bfloat16), context)  # derives the codes

    def note(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        saved[-1][storage.data_ptr()] = storage.nbytes()
        return t

    for _ in range(2):
        x = torch.randn(sequences, length, config.hidden_size).bfloat16().requires_grad_()
        saved.append({})
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            alive.append((x, block(x, context)))  # both graphs stay, so that no storage is used twice
    return sum(size for key, size in saved[0].items() if key not in saved[1])


def measure(settings: Settings) -> Finding:
    sequences, length = (1, 32) if settings.quick else (2, 96)
    config = replace(
        ModelConfig.preset("tiny" if settings.quick else "small"),
        num_hidden_layers=2,
        num_nextn_predict_layers=0,
        initializer_range=0.03,
    )
    torch.manual_seed(0)
    block = DeepseekV3(config, precision="fp8", seed=1).model.layers[1]
    assert isinstance(block, Block)
    items = expected(config)
    before, after = (sum(values) for values in zip(*items.values(), strict=True))
    tokens = sequences * length
    # The experts' end offsets are kept once a call, not once a token.
    found = counted(block, config, sequences, length) - _FP32 * config.n_routed_experts
    agrees = found == after * tokens

    def draw(axes: Axes) -> None:
        names = list(items)
        places = range(len(names))
        axes.barh(
            places, [b / 1e3 for b, _ in items.values()], 0.7, color=GREY, alpha=0.5, label="ordinary BF16"
        )
        axes.barh(places, [a / 1e3 for _, a in items.values()], 0.42, color=COLOURS[0], label="FP8 training")
        axes.set_yticks(places, [name.replace(": ", ":\n") for name in names], fontsize=6.5)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set(xlabel="kB a token", title=f"An MoE block: {after / 1e3:.1f} of {before / 1e3:.1f} kB")
        axes.legend(loc="upper center", bbox_to_anchor=(0.2, -0.2), ncols=2)

    return Finding(
        shown=agrees and 2 * after <= before,
        sentence=(
            f"a block keeps {found / tokens:,.0f} bytes a token by count ({'as' if agrees else 'NOT as'} the "
            f"shapes say) instead of {before:,.0f} in BF16: {after / before:.2f} times"
        ),
        header=["bytes a token", "before", "after", "saved"],
        rows=[[name, f"{b:,.0f}", f"{a:,.0f}", f"{b - a:,.0f}"] for name, (b, a) in items.items()]
        + [["in all", f"{before:,.0f}", f"{after:,.0f}", f"{before - after:,.0f}"]],
        numbers={"items": items, "counted": found / tokens},
        draw=draw,
    )


CLAIM = Claim(
    name="memory",
    says="FP8 and E5M6 caches, and recomputing norms, up-projections and SwiGLU, save activation memory",
    section="3.2.3 and 3.3.3",
    passes="at most half of what ordinary BF16 training keeps, and to the byte what the shapes say",
    measure=measure,
)
