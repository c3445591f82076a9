"""What FP8 does to every operand of a step, and where the routers send the tokens: telemetry.jsonl.

Seen from outside, by a dispatch mode over our operators: an operand is measured where it is quantised, and
gets its name where it is multiplied. A product by a weight's codes says which layer it is, and codes of one
tensor in two directions share what is found out about one of them. Nothing is added to a step that is not
watched, and no bit changes in one that is.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode

from .. import ops
from ..nn.derived import Derived
from ..ops.exchange import _dispatch_start
from ..ops.fp8_linear import _forward as _fp8_linear
from ..ops.moe_ffn import _forward as _moe_ffn
from ..ops.moe_ffn import _forward_across as _moe_ffn_across
from ..parallel.world import World
from ..reference.formats import E4M3_MAX, E5M6_MAX, TILE
from .metrics import MetricsFile, cut_back
from .observers import Observer

OPERANDS = ("activation", "weight", "gradient", "activation_t", "gradient_t", "cache")
"""fprop reads activation and weight, dgrad gradient and weight, wgrad gradient_t and activation_t, which are
tiled along the tokens; cache is what is kept for the backward at the layer's input."""

_ops = torch.ops.deepseek_ext


class Telemetry(Observer):
    """Writes telemetry.jsonl: for every `every`-th step one row per layer and operand, and one per router.

    Each rank watches its part of the step, and the main rank writes what all have seen together.
    """

    def __init__(
        self,
        model: nn.Module,
        path: Path,
        *,
        every: int,
        after_step: int,
        say: Callable[[str], None],
        world: World,
    ) -> None:
        """after_step: the step that the run goes on from; later rows are of steps that will be repeated."""
        world.lead(lambda: cut_back(path, after_step))
        self.model = model
        self.every = every
        self.say = say
        self.world = world
        self._file = MetricsFile(path if world.is_main else Path(os.devnull))
        self._watch: Watch | None = None

    def around(self, step: int) -> AbstractContextManager[object]:
        self._watch = Watch(self.model) if step % self.every == 0 else None
        return self._watch or nullcontext()

    def see(self, row: dict[str, Any]) -> None:
        if self._watch is None:
            return
        seen = self.world.all(self._watch.seen())
        names = self._watch.order
        self._watch = None
        self.world.lead(lambda: self._write(row, together(seen, names)))  # on failure all ranks leave it out

    def _write(self, row: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        for found in rows:
            if warning := self._file.write({"step": row["step"], "tokens": row["tokens"], **found}):
                self.say(f"WARNING: {warning}")

    def close(self) -> None:
        self._file.close()


@dataclass(slots=True)
class Statistics:
    """Sums over the elements and tiles of an operand, from which the shares follow."""

    elements: int = 0
    underflowed: int = 0
    saturated: int = 0
    squared_error: float = 0.0
    squares: float = 0.0
    smallest_scale: float = math.inf
    largest_scale: float = 0.0

    def add(self, other: Statistics) -> None:
        self.elements += other.elements
        self.underflowed += other.underflowed
        self.saturated += other.saturated
        self.squared_error += other.squared_error
        self.squares += other.squares
        self.smallest_scale = min(self.smallest_scale, other.smallest_scale)
        self.largest_scale = max(self.largest_scale, other.largest_scale)

    def row(self) -> dict[str, Any]:
        spread = math.log2(self.largest_scale / self.smallest_scale) if self.largest_scale else 0.0
        return {
            "underflow": self.underflowed / max(1, self.elements),
            "saturated": self.saturated / max(1, self.elements),
            "scale_spread": spread,
            "relative_error": math.sqrt(self.squared_error / self.squares) if self.squares else 0.0,
        }


def measure(
    x: Tensor, values: Tensor, scales: Tensor, *, limit: float = E4M3_MAX, elements: int | None = None
) -> Statistics:
    """How well values times scales give x [..., N, K].

    values: the numbers that the codes stand for, of x's shape; scales: [..., N, ceil(K/128)] of tiles or
    [..., ceil(N/128), ceil(K/128)] of blocks; limit: the format's largest number;
    elements: how many there are, where x has gaps. An element underflows when it is not zero and its code is,
    -0 included. It is saturated when its code is NaN or the largest one and
    the element lies beyond what that stands for, by more than FP32 rounds: under a scale that comes from the
    largest finite magnitude that happens to elements alone that are not finite. The error is the norm of the
    difference over the norm of x, finite elements alone. Tiles of zeros have no say in the spread.
    """
    elements = x.numel() if elements is None else elements
    rows = 1 if scales.shape[-2] == values.shape[-2] else TILE
    x, values = _in_tiles(x.float(), rows), _in_tiles(values, rows)
    back = values * scales[..., :, None, :, None]
    magnitudes = values.abs()
    largest = magnitudes.amax(-1).amax(-2)
    at_limit = magnitudes == limit
    saturated = int((x[at_limit].abs() > back[at_limit].abs() * (1 + 2.0**-20)).sum())
    # No code but zero stands for zero.
    underflowed = int(x.count_nonzero() - values.count_nonzero())
    if largest.isnan().any():
        saturated += int(values.isnan().sum())
        finite = x.isfinite() & values.isfinite()
        x, back = torch.where(finite, x, 0.0), torch.where(finite, back, 0.0)
    used = scales[largest != 0]
    return Statistics(
        elements=elements,
        underflowed=underflowed,
        saturated=saturated,
        squared_error=_sum_of_squares(x - back),
        squares=_sum_of_squares(x),
        smallest_scale=float(used.min()) if used.numel() else math.inf,
        largest_scale=float(used.max()) if used.numel() else 0.0,
    )


def _in_tiles(x: Tensor, rows: int) -> Tensor:
    """x [..., N, K], filled up with zeros, as [..., ceil(N/rows), rows, ceil(K/128), 128]."""
    n, k = x.shape[-2:]
    if n % rows or k % TILE:
        x = pad(x, (0, -k % TILE, 0, -n % rows))
    return x.unflatten(-1, (-1, TILE)).unflatten(-3, (-1, rows))


def _sum_of_squares(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2


@dataclass(slots=True)
class _Codes:
    """Quantised once: what that cost, and the layer that multiplies by it."""

    statistics: Statistics
    layer: list[str] = field(default_factory=list)
    """The name of the layer once it is known; one list for all the codes of one tensor."""
    cache: Statistics | None = None
    """Of what is kept for the backward, where these codes were made from it or beside it."""


class Seen(NamedTuple):
    """What a rank saw of a step: sums, which add up over ranks."""

    operands: dict[tuple[str, str], Statistics]
    """By layer and operand."""
    loads: dict[str, list[int]]
    """Tokens of each expert, by router."""


def together(parts: Sequence[Seen], order: Sequence[str]) -> list[dict[str, Any]]:
    """What several ranks saw: a row for each layer and operand, then one for each router.

    order: the names of layers in the order of the model. A weight that several ranks quantise counts as
    often, which changes no share. A rank need not have seen what others have: experts, say.
    """
    operands: dict[tuple[str, str], Statistics] = defaultdict(Statistics)
    loads: dict[str, Tensor] = {}
    for part in parts:
        for key, statistics in part.operands.items():
            operands[key].add(statistics)
        for layer, load in part.loads.items():
            loads[layer] = torch.tensor(load) + loads.get(layer, 0)
    place = {name: position for position, name in enumerate(order)}
    found = sorted(operands.items(), key=lambda item: (place[_first(item[0][0])], OPERANDS.index(item[0][1])))
    rows: list[dict[str, Any]] = [
        {"layer": layer, "operand": operand, **statistics.row()} for (layer, operand), statistics in found
    ]
    rows += [
        {"layer": layer, "max_vio": max_violation(load).item(), "load": load.tolist()}
        for layer, load in loads.items()
    ]
    return rows


class Watch(TorchDispatchMode):
    """Watches the operators of one step; afterwards `seen` says what was seen.

    A step, because the codes of the weights are made in it: on entry the layers forget theirs.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self.order = [name.removesuffix(".weight") for name, _ in model.named_parameters()]
        self._sharded = any(map(_is_sharded, model.parameters()))
        # Until they are quantised: then their memory goes to others, such as weights that are gathered.
        self._stacks: dict[int, str] = {}
        self._names = {_memory(b): name.rpartition(".")[0] for name, b in model.named_buffers()}
        self._name_weights()
        self._codes: dict[int, _Codes] = {}  # by the memory that holds them
        self._weights: dict[int, tuple[str, Tensor]] = {}
        self._operands: dict[tuple[str, str], Statistics] = defaultdict(Statistics)
        self._loads: dict[str, Tensor] = {}
        self._compositions: dict[Any, Callable[..., Any]] = {
            _ops.moe_ffn.default: _moe_ffn,
            _ops.moe_ffn_experts.default: _moe_ffn_across,
            _ops.dispatch_start.default: _dispatch_start,
            _ops.fp8_linear.default: _fp8_linear,
        }
        self._watched: dict[Any, Callable[..., None]] = {
            torch.ops.aten.cat.default: self._stacked,
            _ops.quantize_blocks.default: self._quantized_weight,
            _ops.quantize_tiles.default: self._quantized,
            _ops.quantize_tiles_transposed.default: self._quantized_transposed,
            _ops.quantize_tiles_both.default: self._quantized_both,
            _ops.quantize_e5m6.default: self._quantized_e5m6,
            _ops.swiglu_quantize.default: self._activated,
            _ops.gather_tiles.default: self._gathered,
            _ops.exchange_start.default: self._sent,
            _ops.exchange_tiles.default: self._gathered,
            _ops.unpack_rows.default: self._gathered,
            _ops.retile.default: self._retiled,
            _ops.retile_e5m6.default: self._retiled_e5m6,
            _ops.gemm.default: self._multiplied,
            _ops.grouped_gemm.default: self._multiplied,
            _ops.gemm_accumulate_.default: lambda _, out, a, a_scales, b, *rest: self._wgrad(a, b),
            _ops.grouped_gemm_wgrad.default: lambda _, a, a_scales, b, *rest: self._wgrad(a, b),
            _ops.grouped_gemm_wgrad_accumulate_.default: (
                lambda _, out, a, a_scales, b, *rest: self._wgrad(a, b)
            ),
            _ops.route.default: self._routed,
        }

    def __enter__(self) -> Watch:
        for module in self._model.modules():
            if isinstance(module, Derived):
                module.weights_changed()
        super().__enter__()
        return self

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._compositions:
            with self:  # what it calls is what is to be seen
                return self._compositions[func](*args, **kwargs)
        out = func(*args, **kwargs)
        if func in self._watched:
            self._watched[func](out, *args, **kwargs)
        return out

    def seen(self) -> Seen:
        """Of this rank."""
        return Seen(dict(self._operands), {layer: load.tolist() for layer, load in self._loads.items()})

    def _name_weights(self) -> None:
        """Notes where the weights are that this rank holds whole now: FSDP2 gathers them during the step."""
        for name, parameter in self._model.named_parameters():
            if not _is_sharded(parameter):
                self._names[_memory(parameter)] = name.removesuffix(".weight")

    def _name_of(self, weight: Tensor) -> str | None:
        if _memory(weight) in self._stacks:
            return self._stacks.pop(_memory(weight))
        if self._sharded and _memory(weight) not in self._names:
            self._name_weights()
        return self._names.get(_memory(weight))

    # What each operator tells. Its result comes first, then its arguments.

    def _stacked(self, out: Tensor, tensors: list[Tensor], dim: int = 0) -> None:
        names = [self._name_of(tensor) for tensor in tensors]
        if all(names) and dim == 0:
            first, *rest = [str(name) for name in names]
            self._stacks[_memory(out)] = "+".join([first, *(name.rpartition(".")[2] for name in rest)])

    def _quantized_weight(self, out: tuple[Tensor, Tensor], w: Tensor, **_: Any) -> None:
        layer = self._name_of(w)
        if layer is not None:
            codes, scales = out
            self._weights[_memory(codes)] = layer, codes
            self._operands[layer, "weight"].add(measure(w, codes.float(), scales))

    def _quantized(self, out: tuple[Tensor, Tensor], x: Tensor, **_: Any) -> None:
        codes, scales = out
        self._codes[_memory(codes)] = _Codes(measure(x, codes.float(), scales))

    def _quantized_transposed(
        self, out: tuple[Tensor, Tensor], x: Tensor, offs: Tensor | None = None, **_: Any
    ) -> None:
        codes, scales = out
        x_t, elements = _as_columns(x.float(), offs, codes.shape[1])
        self._codes[_memory(codes)] = _Codes(measure(x_t, codes.float(), scales, elements=elements))

    def _quantized_both(
        self, out: tuple[Tensor, ...], x: Tensor, offs: Tensor | None = None, **_: Any
    ) -> None:
        self._quantized((out[0], out[1]), x)
        self._quantized_transposed((out[2], out[3]), x, offs)
        self._codes[_memory(out[2])].layer = self._codes[_memory(out[0])].layer

    def _quantized_e5m6(self, out: tuple[Tensor, Tensor], x: Tensor) -> None:
        packed, scales = out
        values = ops.dequantize_e5m6(packed, torch.ones_like(scales), x.shape[-1])
        self._codes[_memory(packed)] = _Codes(measure(x, values, scales, limit=E5M6_MAX))

    def _activated(
        self, out: tuple[Tensor, ...], gate_up: Tensor, weights: Tensor | None = None, **_: Any
    ) -> None:
        codes, scales, cache, cache_scales = out
        product = ops.swiglu(gate_up.float(), weights)
        made = _Codes(measure(product, codes.float(), scales))
        if cache.numel():
            made.cache = measure(gate_up, cache.float(), cache_scales)
        self._codes[_memory(codes)] = made

    def _sent(self, out: Tensor, parts: list[Tensor], *_: Any) -> None:
        """What arrives is of other ranks' tokens, but goes to the same layer as this one's."""
        self._gathered((out,), parts[0])

    def _gathered(self, out: tuple[Tensor, ...], codes: Tensor, *_: Any) -> None:
        if _memory(codes) in self._codes:
            self._codes[_memory(out[0])] = self._codes[_memory(codes)]

    def _retiled(
        self, out: tuple[Tensor, Tensor], codes: Tensor, scales: Tensor, offs: Tensor | None = None, **_: Any
    ) -> None:
        self._quantized_transposed(out, ops.dequantize_tiles(codes, scales), offs)
        if _memory(codes) in self._codes:
            self._codes[_memory(out[0])].layer = self._codes[_memory(codes)].layer

    def _retiled_e5m6(
        self, out: tuple[Tensor, Tensor], packed: Tensor, scales: Tensor, k: int, **_: Any
    ) -> None:
        self._quantized_transposed(out, ops.dequantize_e5m6(packed, scales, k))
        if _memory(packed) in self._codes:
            self._codes[_memory(out[0])].cache = self._codes[_memory(packed)].statistics

    def _multiplied(self, _: Tensor, a: Tensor, a_scales: Tensor, b: Tensor, *rest: Any, **__: Any) -> None:
        if _memory(b) not in self._weights:
            self._wgrad(a, b)
            return
        layer, weight = self._weights[_memory(b)]
        as_it_is = b.shape == weight.shape and b.stride() == weight.stride()
        self._name(a, layer, "activation" if as_it_is else "gradient")

    def _wgrad(self, grad_t: Tensor, x_t: Tensor) -> None:
        """The gradient has its name from dgrad, which is computed first, or never."""
        known = self._codes.get(_memory(grad_t))
        if known is not None and known.layer:
            self._name(grad_t, known.layer[0], "gradient_t")
            self._name(x_t, known.layer[0], "activation_t")

    def _name(self, codes: Tensor, layer: str, operand: str) -> None:
        made = self._codes.get(_memory(codes))
        if made is None:
            return
        made.layer[:] = [layer]
        self._operands[layer, operand].add(made.statistics)
        if made.cache is not None:
            self._operands[layer, "cache"].add(made.cache)

    def _routed(self, out: tuple[Tensor, ...], logits: Tensor, bias: Tensor, *_: Any, **__: Any) -> None:
        layer = self._names.get(_memory(bias))
        if layer is not None:
            self._loads[layer] = self._loads.get(layer, 0) + out[-1]


def max_violation(load: Tensor) -> Tensor:
    """MaxVio, the largest load of an expert over the mean load, minus one: load [..., E] to [...]."""
    load = load.double()
    return load.amax(-1) / load.mean(-1).clamp_min(1e-9) - 1


def _as_columns(x: Tensor, offs: Tensor | None, width: int) -> tuple[Tensor, int]:
    """x [M, K] where the transposed codes [K, width] have it, zeros in the gaps; and how many it has."""
    ends = torch.tensor([x.shape[0]]) if offs is None else offs.long().cpu()
    counts = ends.diff(prepend=ends.new_zeros(1))
    padded = -(-counts // TILE) * TILE
    shift = (padded.cumsum(0) - padded) - (ends - counts)  # of each group
    used = int(ends[-1])
    columns = torch.arange(used) + shift.repeat_interleave(counts)
    placed = x.new_zeros(x.shape[1], width)
    placed[:, columns.to(x.device)] = x[:used].t()
    return placed, used * x.shape[1]


def _memory(tensor: Tensor) -> int:
    """What views of a tensor share with it; what is made later may have it again, and overwrites it here."""
    return tensor.untyped_storage().data_ptr()


def _is_sharded(parameter: Tensor) -> bool:
    return hasattr(parameter, "to_local")  # a DTensor, whose import a run of one process does without


def _first(layer: str) -> str:
    """Of a stack of weights its first."""
    return layer.partition("+")[0]
