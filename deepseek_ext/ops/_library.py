"""Loads the compiled operators; chooses the CPU tier they run on."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import torch

try:
    from .. import _native
except ImportError as error:
    raise ImportError(
        f"{Path(__file__).parents[1]} has no compiled modules. From a checkout run `make setup`, or install "
        "with `pip install --no-build-isolation .`; both need g++ and an installed torch. If it is "
        "installed, start Python outside the checkout, whose folder deepseek_ext comes first inside it."
    ) from error

try:
    _native.check_capability(os.environ.get("DSE_CPU_CAPABILITY") or "generic")
except ValueError as error:
    raise ValueError(f"DSE_CPU_CAPABILITY: {error}, or unset it") from None

from .. import _C  # noqa: F401  registers schemas and CPU kernels

# CUDA kernels, unless this torch has no CUDA (their library could not be loaded) or they were left out.
for _module in ("deepseek_ext._C_cuda", "deepseek_ext._C_cuda_gemm"):
    if torch.version.cuda is not None and importlib.util.find_spec(_module) is not None:
        importlib.import_module(_module)

NAMESPACE = "deepseek_ext"
_fragment = torch.library.Library(NAMESPACE, "FRAGMENT")


def cpu_capability() -> str:
    """The CPU tier in use: generic, avx2, avx512 or avx512_bf16 ("-novbmi" appended if VBMI is left unused).

    Set DSE_CPU_CAPABILITY before the import to force a lower one.
    """
    return str(torch.ops.deepseek_ext.cpu_capability())


@contextlib.contextmanager
def using_cpu_capability(name: str) -> Iterator[None]:
    """Runs the CPU kernels of another tier inside a `with` block; for tests and benchmarks.

    name is a tier as DSE_CPU_CAPABILITY takes it. The switch is process-wide. Raises ValueError for a tier
    this host lacks, naming those it has.
    """
    try:
        before = torch.ops.deepseek_ext.set_cpu_capability(name)
    except ValueError as error:
        raise ValueError(f"using_cpu_capability: name {error}") from None
    try:
        yield
    finally:
        torch.ops.deepseek_ext.set_cpu_capability(before)
