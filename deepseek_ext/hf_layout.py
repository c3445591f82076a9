"""Which tensors a Hugging Face checkpoint of the model has, and which part of the model each of them is.

The names are those of the released files, which the model shares except for the routed experts, which are
stacked here ([E, 2I, H] and [E, H, I]) and one by one there, and for the embedding and head of an MTP
module, which are the main model's here and written out as copies there.

Shapes: E experts, I expert width, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import ops
from .model import DeepseekV3
from .ops._checks import TILE, num_tiles

CONFIG, INDEX = "config.json", "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Entry:
    """One weight of a checkpoint."""

    name: str
    """Its name in the checkpoint."""
    source: str
    """The name of the model's parameter or buffer that holds it."""
    part: tuple[int | slice, ...]
    """The part of that tensor that it is; () is all of it."""
    shape: tuple[int, ...]
    """Its shape."""
    is_copy: bool = False
    """Whether the main model has it too: embedding and head of an MTP module."""

    @property
    def quantised(self) -> bool:
        """Whether an FP8 checkpoint holds it in E4M3: the projections, not eh_proj (paper, section 3.3.1)."""
        return self.name.endswith(("_proj.weight", "_proj_with_mqa.weight")) and "eh_proj" not in self.name

    @property
    def always_float32(self) -> bool:
        """Whether it is FP32 in every checkpoint: router biases move in steps that BF16 would round away."""
        return self.name.endswith("e_score_correction_bias")

    @property
    def scale_name(self) -> str:
        return self.name + "_scale_inv"

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """One scale for each block of 128x128."""
        return tuple(num_tiles(size) for size in self.shape)

    def of(self, tensors: dict[str, Tensor]) -> Tensor:
        """A view of this weight in the model's state dict."""
        tensor = tensors[self.source]
        return tensor[self.part] if self.part else tensor


def entries(model: DeepseekV3, *, include_mtp: bool = True) -> Iterator[Entry]:
    """Every weight of the model's checkpoint, layer by layer; on the meta device too."""
    tensors = model.state_dict()
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        layer = layer_of(name)
        mtp = layer is not None and layer >= model.config.num_hidden_layers
        if mtp and not include_mtp:
            continue
        stem, _, kind = name.rpartition(".")
        if stem.endswith("mlp.experts") and kind == "gate_up":
            width = shape[1] // 2
            for expert in range(shape[0]):
                for half, rows in (("gate_proj", slice(0, width)), ("up_proj", slice(width, 2 * width))):
                    yield Entry(f"{stem}.{expert}.{half}.weight", name, (expert, rows), (width, shape[2]))
        elif stem.endswith("mlp.experts") and kind == "down":
            for expert in range(shape[0]):
                yield Entry(f"{stem}.{expert}.down_proj.weight", name, (expert,), shape[1:])
        else:
            yield Entry(name, name, (), shape)
        if mtp and name.endswith(".shared_head.norm.weight"):
            prefix = name.removesuffix("shared_head.norm.weight")
            for copy, source in (
                ("embed_tokens.weight", "model.embed_tokens.weight"),
                ("shared_head.head.weight", "lm_head.weight"),
            ):
                yield Entry(prefix + copy, source, (), tuple(tensors[source].shape), is_copy=True)


def layer_of(name: str) -> int | None:
    """The layer number in a tensor's name: 3 of "model.layers.3.enorm.weight"; None where it has none."""
    words = name.split(".")
    return int(words[2]) if words[:2] == ["model", "layers"] and words[2:] and words[2].isdecimal() else None


def quantise_weight(weight: Tensor, *, power_of_2: bool) -> tuple[Tensor, Tensor]:
    """Codes and scales whose values, when they are quantised again, give the same codes and scales.

    weight [N, K] FP32; codes float8_e4m3fn [N, K], scales FP32 [ceil(N/128), ceil(K/128)]. The values are
    exactly those of ops.quantize_blocks, which the model's forward multiplies by, but quantize_blocks alone
    is no fixed point, for two reasons. The largest element x of a block with 224 * scale < x <= 232 * scale,
    scale a power of two, rounds to the code 224, for which half the scale and the code 448 do. And a block
    whose elements all round to zero keeps a scale that they no longer show. Quantising the values once more
    settles both.
    """
    codes, scales = ops.quantize_blocks(weight, power_of_2=power_of_2)
    return ops.quantize_blocks(ops.dequantize_blocks(codes, scales), power_of_2=power_of_2)


def block_size() -> list[int]:
    """Rows and columns that share a scale, as config.json states them."""
    return [TILE, TILE]


def stored_as(entry: Entry, dtype: str) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """The tensors that hold a weight in a checkpoint of `dtype` ("bfloat16", "float32" or "fp8"), by name."""
    shape = torch.Size(entry.shape)
    if dtype == "fp8" and entry.quantised:
        scales = torch.Size(entry.scale_shape)
        return {entry.name: (shape, torch.float8_e4m3fn), entry.scale_name: (scales, torch.float32)}
    exact = dtype == "float32" or entry.always_float32
    return {entry.name: (shape, torch.float32 if exact else torch.bfloat16)}
