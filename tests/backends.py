"""Where a test's operators run: on the CPU's tiers, on the simulator of GPUs, or on a GPU.

A test body calls deepseek_ext.ops with CPU tensors and says nothing of devices. For the simulator and for a
GPU the operators' CPU kernels are replaced, inside compositions and backward passes too: by the operator of
the same name in deepseek_ext_sim (csrc/cuda and csrc/ops/*_cuda.cpp, built by tests/ptxsim/extension.mk), or
by one that moves its arguments to the GPU, strides kept, and its results back.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepseek_ext.ops._library import NAMESPACE

BACKENDS = ["cpu", "simulator", "cuda"]
SIMULATED = "deepseek_ext_sim"
LIBRARY = Path(__file__).parents[1] / "build/ptxsim/_C_sim.so"

Kernel = Callable[..., Any]

_cpu_wanted = contextvars.ContextVar("cpu_wanted", default=False)


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """The CPU's own kernels again, for results that another backend is compared with."""
    token = _cpu_wanted.set(True)
    try:
        yield
    finally:
        _cpu_wanted.reset(token)


def _unless_cpu_is_wanted(name: str, kernel: Kernel) -> Kernel:
    own = torch.library.get_kernel(f"{NAMESPACE}::{name}", "CPU")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

    def call(*args: Any, **kwargs: Any) -> Any:
        return own.call_boxed(keys, *args, **kwargs) if _cpu_wanted.get() else kernel(*args, **kwargs)

    return call


def operators(key: str, namespace: str = NAMESPACE) -> set[str]:
    """The operators of deepseek_ext for which `namespace` has a kernel of its own for dispatch key `key`."""
    return {
        name
        for name in (s.name.partition("::")[2] for s in _schemas())
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"{namespace}::{name}", key)
    }


def _schemas() -> list[torch._C.FunctionSchema]:
    return [s for s in torch._C._jit_get_all_schemas() if s.name.startswith(f"{NAMESPACE}::")]


@functools.cache
def load_simulator() -> torch.library.Library:
    """Gives deepseek_ext_sim the schemas of deepseek_ext and loads its kernels; keep the result."""
    if not LIBRARY.exists():
        raise FileNotFoundError(f"{LIBRARY} is missing: run make -f tests/ptxsim/extension.mk")
    library = torch.library.Library(SIMULATED, "FRAGMENT")
    for schema in _schemas():
        library.define(str(schema).removeprefix(f"{NAMESPACE}::"))
    torch.ops.load_library(LIBRARY)
    return library


def simulated_kernels() -> dict[str, Kernel]:
    """The simulator's operators."""
    load_simulator()
    return {name: getattr(torch.ops.deepseek_ext_sim, name).default for name in operators("CPU", SIMULATED)}


def simulator_option(name: str, value: int) -> None:
    """Sets an option of the simulator (docs/simulator.md) for the launches that follow."""
    ptxsim_option = ctypes.CDLL("libptxsim.so").ptxsim_option  # loaded already, and found by its name
    ptxsim_option.argtypes = [ctypes.c_char_p, ctypes.c_int64]
    if ptxsim_option(name.encode(), value) != 0:
        raise ValueError(f"the simulator has no option {name!r} that takes {value}")


def has_hopper(config: Any) -> bool:
    """Whether pytest runs operators on a device of compute capability 9.0, simulated or not."""
    chosen = config.getoption("--backend")
    if chosen == "simulator":
        return config.getoption("--simulator-capability") == 90
    return chosen == "cuda" and torch.cuda.get_device_capability() == (9, 0)


def _to_gpu(x: Tensor) -> Tensor:
    """x with its strides and whatever lies between its elements."""
    storage = x.untyped_storage().cuda()
    return torch.empty(0, dtype=x.dtype, device="cuda").set_(storage, x.storage_offset(), x.shape, x.stride())


def _map_tensors(f: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_map_tensors(f, v) for v in value)
    return value


def cuda_kernels() -> dict[str, Kernel]:
    """The operators with a CUDA kernel, for CPU tensors; arguments they change are copied back."""

    def on_gpu(op: torch._ops.OpOverload) -> Kernel:
        def call(*args: Any, **kwargs: Any) -> Any:
            moved: dict[int, tuple[Tensor, Tensor]] = {}

            def move(x: Tensor) -> Tensor:
                return moved.setdefault(id(x), (x, _to_gpu(x)))[1]

            result = op(*_map_tensors(move, args), **{k: _map_tensors(move, v) for k, v in kwargs.items()})
            if op._schema.is_mutable:
                for original, on_device in moved.values():
                    original.copy_(on_device)
            return _map_tensors(lambda x: x.cpu(), result)

        return call

    return {name: on_gpu(getattr(torch.ops.deepseek_ext, name).default) for name in operators("CUDA")}


@contextlib.contextmanager
def instead_of_cpu_kernels(kernels: dict[str, Kernel]) -> Iterator[None]:
    """Runs `kernels` in the place of the operators' CPU kernels; values of offsets are checked as there."""
    library = torch.library.Library(NAMESPACE, "IMPL")
    before = os.environ.get("DSE_CHECK")
    os.environ["DSE_CHECK"] = "1"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Warning only once for all operators")
            for name, kernel in kernels.items():
                library.impl(name, _unless_cpu_is_wanted(name, kernel), "CPU", allow_override=True)
        yield
    finally:
        library._destroy()
        if before is None:
            del os.environ["DSE_CHECK"]
        else:
            os.environ["DSE_CHECK"] = before
