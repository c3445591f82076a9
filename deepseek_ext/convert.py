"""FP8 for a model that is already there: nn.Linear layers become Float8Linear, in place.

The three products of such a layer (fprop, dgrad, wgrad) run in E4M3 as `ops.fp8_linear` describes
(DeepSeek-V3, section 3.3). Parameters stay what and where they were, in FP32 or BF16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from . import ops
from .nn.derived import Derived
from .ops._checks import check_linear

_DTYPES = (torch.float32, torch.bfloat16)


class Float8Linear(nn.Linear, Derived):
    """nn.Linear whose products run in FP8: x [..., in_features] -> [..., out_features] in x's dtype.

    x and the weight are bfloat16 or float32 each; the bias, if any, is added to the product in x's dtype.
    Under torch.autocast x is first cast to autocast's dtype, as nn.Linear does. Gradients have the dtypes of
    x, weight and bias. Shapes and errors are those of ops.fp8_linear.

    The weight's codes are kept from call to call, and made anew after any step of any torch.optim optimizer
    and after any other change that `Derived` notices; after others call `weights_changed()`. Inside
    torch.compile nothing is kept: the codes are made in the graph, once a call, which adds one pass over the
    weight.
    """

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        check_linear("Float8Linear", x, self.weight)
        compiling = torch.compiler.is_compiling()
        codes = None if compiling else self.derive(ops.quantize_blocks, self.weight)
        y = ops.fp8_linear(x, self.weight, codes=codes)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def convert_linears(
    module: nn.Module,
    filter: Callable[[str, nn.Linear], bool] | None = None,
    *,
    precision: Literal["fp8"] = "fp8",
) -> list[str]:
    """Turns the nn.Linear layers of `module` into Float8Linear in place; returns their names.

    filter(name, linear) says which, by the layer's name as in named_modules(); None takes all. A layer that
    is used under several names is converted once, if the filter accepts each of them, and returned under the
    first. The paper keeps embedding, output head and router in high precision:

        convert_linears(model, lambda name, linear: name != "lm_head")

    Layers stay the same objects, and so do their parameters, hooks and tied weights: an optimizer made
    before stays valid, the state dict is unchanged, and `module` may itself be a layer. Subclasses of
    nn.Linear compute something of their own and are left alone, and so is what was converted before.

    Raises ValueError, before anything is changed, for a precision other than "fp8", and for an accepted layer
    whose weight is neither float32 nor bfloat16 or whose forward was replaced. Source: section 3.3.
    """
    if precision != "fp8":
        raise ValueError(
            f'convert_linears: precision must be "fp8", got {precision!r}; for bfloat16 or float32 leave the '
            "layers as they are, under torch.autocast or not"
        )
    names: dict[nn.Linear, list[str]] = {}
    for name, layer in module.named_modules(remove_duplicate=False):
        if type(layer) is nn.Linear:
            names.setdefault(layer, []).append(name)
    accepted = {
        layer: aliases[0]
        for layer, aliases in names.items()
        if filter is None or all(filter(name, layer) for name in aliases)
    }
    for layer, name in accepted.items():
        _check(name, layer)
    for layer in accepted:
        layer.__class__ = Float8Linear
    for parent in module.modules():
        if not accepted.keys().isdisjoint(parent.modules()):
            _leave_fused_path(parent)
    return list(accepted.values())


def _leave_fused_path(module: nn.Module) -> None:
    """Makes false what torch asks before it runs an encoder without gradient as one operator.

    That operator reads the layers' weights itself, in their own precision, and calls none of them.
    """
    if isinstance(module, nn.TransformerEncoderLayer):
        module.activation_relu_or_gelu = 0
    elif isinstance(module, nn.TransformerEncoder):
        module.use_nested_tensor = False  # which such layers alone can read


def _check(name: str, layer: nn.Linear) -> None:
    if layer.weight.dtype not in _DTYPES:
        raise ValueError(
            f"convert_linears: the weight of {name!r} must be float32 or bfloat16, got "
            f"{str(layer.weight.dtype).removeprefix('torch.')}; convert the module first, or filter it out"
        )
    if "forward" in vars(layer):
        raise ValueError(
            f"convert_linears: the forward of {name!r} was replaced, which would hide the FP8 one; convert "
            "before what replaces it (offloading, for instance), or filter it out"
        )
