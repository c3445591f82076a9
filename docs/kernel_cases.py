"""The calls of operators whose launches docs/generate_kernels.py counts on the simulator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

TOKENS, WIDTH, EXPERTS, TOP_K = 256, 1024, 16, 4
# CTAs of a cluster, rows and columns of tiles, as in csrc/cuda/hopper/gemm_plan.h.
HOPPER_TILES = {
    "64x24": (1, 8),
    "64x48": (2, 4),
    "64x64": (2, 2),
    "128x128": (1, 2),
    "256x96": (1, 2),
    "256x128": (1, 2),
}


class Case:
    """One call of an operator, with arguments that the CPU made."""

    def __init__(
        self,
        operator: str,
        *arguments: Any,
        note: str = "",
        tile: str = "",
        gemm: str = "portable",
        **options: Any,
    ) -> None:
        self.operator, self.arguments, self.options = operator, arguments, options
        self.note, self.tile, self.gemm = note, tile, gemm

    def name(self) -> str:
        return f"`{self.operator}`" + (f" {self.note}" if self.note else "")

    def bytes_of_arguments(self) -> int:
        """Those read and those written, each once."""
        schema = getattr(torch.ops.deepseek_ext, self.operator).default._schema
        given = [*self.arguments, *self.options.values()]
        written = [value for value, a in zip(given, schema.arguments, strict=False) if a.is_write]
        return sum(x.nbytes for x in tree_leaves([given, written]) if isinstance(x, Tensor))


def codes_of(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)).to(torch.float8_e4m3fn)


def cases() -> list[Case]:
    """Calls as a layer makes them, 256 rows of 1024 unless their notes say otherwise."""
    generator = torch.Generator().manual_seed(0)
    return [
        *quantisation(generator),
        *products(generator),
        *swiglu(generator),
        *routing(generator),
        *permutation(generator),
        *exchange(generator),
        *others(generator),
    ]


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator).bfloat16()


def quantisation(generator: torch.Generator) -> Iterator[Case]:
    from deepseek_ext import ops

    x, weight = normal(generator, TOKENS, WIDTH), normal(generator, 512, WIDTH).float()
    codes, scales = ops.quantize_tiles(x)
    w_codes, w_scales = ops.quantize_blocks(weight)
    packed, packed_scales = ops.quantize_e5m6(x)
    yield Case("quantize_tiles", x)
    yield Case("quantize_tiles_transposed", x)
    yield Case("quantize_tiles_both", x)
    yield Case("quantize_blocks", weight, note="512 x 1024 FP32")
    yield Case("transpose_blocks", w_codes, w_scales, note="512 x 1024")
    yield Case("dequantize_tiles", codes, scales, torch.float32, note="to FP32")
    yield Case("dequantize_blocks", w_codes, w_scales, torch.bfloat16, note="512 x 1024")
    yield Case("retile", codes, scales)
    yield Case("quantize_e5m6", x)
    yield Case("dequantize_e5m6", packed, packed_scales, WIDTH, torch.bfloat16)
    yield Case("retile_e5m6", packed, packed_scales, WIDTH)


def products(generator: torch.Generator) -> Iterator[Case]:
    from deepseek_ext import ops

    x = normal(generator, TOKENS, WIDTH)
    codes, scales = ops.quantize_tiles(x)
    w_codes, w_scales = ops.quantize_blocks(normal(generator, 512, WIDTH))
    dense, few = (codes, scales, w_codes, w_scales), (codes[:8], scales[:8], w_codes, w_scales)
    back = codes_of(TOKENS, 512), torch.ones(TOKENS, 4), w_codes.t(), w_scales.t()
    yield Case("gemm", *dense, note="256 x 512 x 1024, tile 128x128", tile="128x128")
    yield Case("gemm", *dense, note="256 x 512 x 1024, tile 64x64", tile="64x64")
    yield Case("gemm", *few, note="8 x 512 x 1024, tile 16x64", tile="16x64")
    yield Case("gemm", *back, note="256 x 1024 x 512, transposed weight", tile="128x128")
    for tile in HOPPER_TILES:
        yield Case("gemm", *dense, note=f"256 x 512 x 1024, Hopper's tile {tile}", tile=tile, gemm="hopper")
    g = normal(generator, TOKENS, 256)
    transposed = *ops.quantize_tiles_transposed(g), *ops.quantize_tiles_transposed(x)
    note = "256 x 1024 x 256, into FP32"
    yield Case("gemm_accumulate_", torch.zeros(256, WIDTH), *transposed, note=note, tile="128x128")

    offs = torch.tensor([100, 100, 190, 256], dtype=torch.int32)
    experts = ops.quantize_blocks(normal(generator, 4, 256, WIDTH))
    note = "4 experts, 256 x 256 x 1024"
    yield Case("grouped_gemm", codes, scales, *experts, offs, note=note, tile="64x64")
    grouped = *ops.quantize_tiles_transposed(g, offs), *ops.quantize_tiles_transposed(x, offs), offs
    note = "4 experts, 256 x 1024"
    yield Case("grouped_gemm_wgrad", *grouped, note=note, tile="128x128")
    out = torch.zeros(4, 256, WIDTH)
    yield Case("grouped_gemm_wgrad_accumulate_", out, *grouped, note=note, tile="128x128")
    note += ", Hopper's tile 128x128"
    yield Case("grouped_gemm_wgrad", *grouped, note=note, tile="128x128", gemm="hopper")


def swiglu(generator: torch.Generator) -> Iterator[Case]:
    from deepseek_ext import ops

    x, grad = normal(generator, TOKENS, WIDTH), normal(generator, TOKENS, WIDTH // 2)
    codes, scales = ops.quantize_tiles(x)
    yield Case("swiglu", x)
    yield Case("swiglu_quantize", x)
    yield Case("swiglu_quantize", x, note="with its cache", cache=True)
    yield Case("swiglu_gradient", grad, x)
    yield Case("swiglu_backward", grad, codes, scales)


def routing(generator: torch.Generator) -> Iterator[Case]:
    from deepseek_ext import ops

    tokens, experts = 2048, 64
    options = {"top_k": 8, "n_groups": 8, "topk_groups": 4, "routed_scaling_factor": 2.5}
    logits, bias = torch.randn(tokens, experts, generator=generator), torch.zeros(experts)
    weights, indices, load = ops.route(logits, bias, **options)
    note = "2048 tokens, 64 experts, top 8"
    yield Case("route", logits, bias, note=note, **options)
    backward = {"routed_scaling_factor": 2.5, "norm_topk_prob": True}
    yield Case("route_backward", weights, logits, indices, note=note, **backward)
    loss = {"num_sequences": 4, "alpha": 1e-4}
    yield Case("sequence_balance_loss", logits, indices, note=note, **loss)
    yield Case("sequence_balance_loss_backward", torch.ones(()), logits, indices, note=note, **loss)
    loads = load.expand(59, -1).contiguous()
    yield Case("update_router_bias_", torch.zeros(59, experts), loads, 1e-3, note="59 routers of 64")


def permutation(generator: torch.Generator) -> Iterator[Case]:
    from deepseek_ext import ops

    x, weights = normal(generator, TOKENS, WIDTH), torch.rand(TOKENS, TOP_K, generator=generator)
    choice = torch.rand(TOKENS, EXPERTS, generator=generator)
    indices = choice.argsort(1)[:, :TOP_K].int()
    rows, slots, _ = ops.expert_order(indices, EXPERTS)
    rows_out = ops.gather_rows(x, rows, TOP_K)
    codes, scales = ops.quantize_tiles(x)
    note = "to 4 of 16 experts"
    many = torch.rand(4096, 64, generator=generator).argsort(1)[:, :8].int()
    yield Case("expert_order", many, 64, note="4096 tokens, 64 experts, top 8")
    yield Case("inverse_order", rows, rows.numel(), note="1024 rows")
    yield Case("gather_rows", x, rows, TOP_K, note=note)
    yield Case("gather_rows", x, rows, TOP_K, weights, note=f"{note}, weighted")
    yield Case("gather_tiles", codes, scales, rows, TOP_K, note=note)
    yield Case("combine_rows", rows_out, slots, weights, x, note=f"{note}, weighted, and a residual")
    yield Case("row_dots", x, rows_out, slots, note=note)


def exchange(generator: torch.Generator) -> Iterator[Case]:
    from deepseek_ext import ops

    ranks = 4
    operators = torch.ops.deepseek_ext
    indices = torch.rand(TOKENS, EXPERTS, generator=generator).argsort(1)[:, :TOP_K].int()
    weights = torch.rand(TOKENS, TOP_K, generator=generator)
    parts = [*ops.quantize_tiles(normal(generator, TOKENS, WIDTH)), weights]
    to = operators.exchange_ranks(indices, EXPERTS // ranks, ranks)
    sent = ops.expert_order(to, ranks)
    rows = sent.rows[: int(sent.offs[-1])]
    packed = operators.pack_rows(parts, None, 1)
    here = ops.expert_order(indices, EXPERTS).rows
    yield Case("exchange_ranks", indices, EXPERTS // ranks, ranks, note="16 experts on 4 ranks, top 4")
    yield Case("pack_rows", parts, rows, to.shape[1], note="of tiles, to 4 ranks")
    yield Case("unpack_rows", packed, here, TOP_K, WIDTH, torch.float8_e4m3fn, True, note="of tiles, top 4")


def others(generator: torch.Generator) -> Iterator[Case]:
    x, grad, weight = normal(generator, TOKENS, WIDTH), normal(generator, TOKENS, WIDTH), torch.ones(WIDTH)
    _, rstd = torch.ops.deepseek_ext.rms_norm(x, weight, 1e-6)
    yield Case("rms_norm", x, weight, 1e-6)
    yield Case("rms_norm_again", x, weight, rstd)
    yield Case("rms_norm_backward", grad, x, weight, rstd)
    angles = torch.polar(torch.ones(TOKENS, 32), torch.rand(TOKENS, 32, generator=generator))
    heads, note = 8, "8 heads of 128 + 64, values of 128"
    q, kv = normal(generator, 1, TOKENS, heads * 192), normal(generator, 1, TOKENS, heads * 256)
    yield Case("rope_heads_", q, kv, normal(generator, 1, TOKENS, 64), angles, heads, note=note)
    q, k, v = (normal(generator, 1, TOKENS, heads, w).transpose(1, 2) for w in (192, 192, 128))
    yield Case("rope_heads_backward_", q, k, v, angles, note=note)
    targets = torch.zeros(TOKENS, dtype=torch.int64)
    yield Case("cross_entropy_", x.clone(), targets)
    p, g = (torch.randn(TOKENS, WIDTH, generator=generator) for _ in range(2))
    moments = normal(generator, TOKENS, WIDTH), normal(generator, TOKENS, WIDTH).square()
    step = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "step": 3}
    yield Case("adamw_step_", [p], [g], *([m] for m in moments), note="FP32, BF16 moments", **step)
