"""Where torch multiplies in BF16, and where it had better not."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _native

_SLOW_BF16 = _native.host_capability() in ("generic", "avx2")


def factor(x: Tensor) -> Tensor:
    """x as torch should multiply it: in FP32 where its BF16 products are slow, else as it is.

    Without AVX-512 torch has no BF16 product worth the name: held to AVX2, a step of the default recipe spent
    2.9 of 3.1 s in those of the output head. FP32 products take the same numbers, sum them as exactly, and
    leave the rounding of the result to the caller.
    """
    return x.float() if _SLOW_BF16 and x.dtype == torch.bfloat16 and x.device.type == "cpu" else x
