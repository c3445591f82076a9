"""What the simulator counts of one call, and tables of it in Markdown."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from kernel_cases import Case
from torch import Tensor
from torch.utils._pytree import tree_leaves

SECTOR = 32  # bytes


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def launches_of(case: Case, kernel: Callable[..., Any], library: ctypes.CDLL) -> tuple[list[dict], int]:
    """Counters of what the call launches, and the bytes that any kernel must move for it."""
    library.ptxsim_counters.restype = ctypes.c_char_p
    wanted = {"DSE_GEMM": case.gemm} | ({"DSE_GEMM_TILE": case.tile} if case.tile else {})
    os.environ.update(wanted)
    try:
        results = kernel(*case.arguments, **case.options)
    finally:
        for name in wanted:
            del os.environ[name]
    written = sum(x.nbytes for x in tree_leaves(results) if isinstance(x, Tensor))
    return json.loads(library.ptxsim_counters()), case.bytes_of_arguments() + written
