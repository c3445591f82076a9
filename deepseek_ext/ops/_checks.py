"""What the argument checks of all families share: one exception, and tensors in words."""

from __future__ import annotations

import torch
from torch import Tensor

TILE = 128
_FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def num_tiles(k: int) -> int:
    """Tiles of 128 that cover k elements."""
    return (k + TILE - 1) // TILE


def require(condition: bool, message: str) -> None:
    """Raises ValueError with `message` unless the condition holds."""
    if not condition:
        raise ValueError(message)


def or_unknown(condition: bool | torch.SymBool) -> bool:
    """The condition, and True where it is about a size that no one knows before the graph runs."""
    if isinstance(condition, bool):
        return condition
    from torch.fx.experimental.symbolic_shapes import guard_or_true

    return bool(guard_or_true(condition))


def shape_of(x: Tensor) -> str:
    """[4, 128]: the shape as a message shows it."""
    return str(list(x.shape))


def dtype_of(x: Tensor | torch.dtype) -> str:
    """bfloat16: the dtype as a message shows it."""
    return str(x.dtype if isinstance(x, Tensor) else x).removeprefix("torch.")


# In the words of csrc/ops/require.h.


def require_float(op: str, name: str, x: Tensor) -> None:
    if x.dtype not in _FLOATS:
        raise ValueError(
            f"{op}: {name} must be bfloat16, float16 or float32, got {dtype_of(x)}; convert it with .float()"
        )


def require_float32(op: str, name: str, x: Tensor, remedy: str = "convert it with .float()") -> None:
    if x.dtype != torch.float32:
        raise ValueError(f"{op}: {name} must be float32, got {dtype_of(x)}; {remedy}")


def require_float_target(op: str, name: str, dtype: torch.dtype) -> None:
    if dtype not in _FLOATS:
        raise ValueError(
            f"{op}: {name} must be bfloat16, float16 or float32, got {dtype_of(dtype)}; "
            "convert the result instead"
        )


def require_int32(op: str, name: str, x: Tensor) -> None:
    if x.dtype != torch.int32:
        raise ValueError(f"{op}: {name} must be int32, got {dtype_of(x)}; convert it with .int()")


def require_own_memory(op: str, name: str, x: Tensor) -> None:
    """Of what is written: rules out that some elements surely share their place in memory."""
    if any(size > 1 and stride == 0 for size, stride in zip(x.shape, x.stride(), strict=True)):
        raise ValueError(
            f"{op}: {name} must not share memory between its elements, got strides {list(x.stride())} "
            f"for shape {shape_of(x)}; pass a .clone()"
        )


# Of fp8_linear and moe_ffn, which are compositions in Python.


def check_linear(op: str, x: Tensor, weight: Tensor) -> None:
    """What every way to call the operator requires of its tensors, in the name of `op`."""
    require_weight_dtype(op, "x", x)
    require_weight_dtype(op, "weight", weight)
    if weight.dim() != 2:
        raise ValueError(
            f"{op}: weight must be [N, K], got shape {shape_of(weight)}; reshape it to outputs by inputs"
        )
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{op}: x must be [..., K], K = {weight.shape[1]} as in weight, got shape {shape_of(x)}; "
            "bring the inputs into the last dimension"
        )


def require_weight_dtype(op: str, name: str, x: Tensor) -> None:
    if x.dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"{op}: {name} must be bfloat16 or float32, got {dtype_of(x)}; convert it first")


def check_weight_codes(op: str, name: str, weight: Tensor, codes: Tensor, scales: Tensor) -> None:
    """Codes and scales of a weight [..., N, K] that the caller quantised."""
    if codes.dtype != torch.float8_e4m3fn or codes.shape != weight.shape:
        raise ValueError(
            f"{op}: codes of {name} must be float8_e4m3fn of its shape {shape_of(weight)}, "
            f"got {dtype_of(codes)} {shape_of(codes)}; make them with quantize_blocks({name})"
        )
    wanted = [*weight.shape[:-2], num_tiles(weight.shape[-2]), num_tiles(weight.shape[-1])]
    if scales.dtype != torch.float32 or list(scales.shape) != wanted:
        raise ValueError(
            f"{op}: scales of {name} must be float32 {wanted}, got {dtype_of(scales)} {shape_of(scales)}; "
            f"make them with quantize_blocks({name})"
        )
